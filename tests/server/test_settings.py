from pathlib import Path

import pytest

from server.settings import load_settings


def test_flags_win_over_environment_over_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "eenet.toml"
    config.write_text('port = 1111\nwindow = 111\nbudget_ms = 1.5\nmeasure = "end_to_end"\n')
    monkeypatch.setenv("EENET_PORT", "2222")
    monkeypatch.setenv("EENET_WINDOW", "222")
    environ = {"EENET_PORT": "2222", "EENET_WINDOW": "222"}
    settings = load_settings({"port": "3333"}, config, environ)
    assert (settings.port, settings.window, settings.budget_ms) == (3333, 222, 1.5)
    assert (settings.measure, settings.host) == ("end_to_end", "127.0.0.1")


def test_several_bundles_come_from_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EENET_BUNDLE", "a:b")
    settings = load_settings({}, None, {"EENET_BUNDLE": "a:b"})
    assert settings.bundle == (Path("a"), Path("b"))


def test_an_unknown_variable_is_an_error() -> None:
    with pytest.raises(ValueError, match="EENET_BUGDET_MS"):
        load_settings({}, None, {"EENET_BUGDET_MS": "1"})


def test_an_unknown_key_of_the_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("bugdet_ms = 1\n")
    with pytest.raises(ValueError, match="bugdet_ms"):
        load_settings({}, tmp_path / "c.toml", {})


@pytest.mark.parametrize("text", ["port = ", None])
def test_an_unreadable_file_is_an_error_that_names_it(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "c.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"c\.toml"):
        load_settings({}, path, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget_ms", "0"),
        ("budget_ms", "-1"),
        ("budget_ms", "nan"),
        ("budget_ms", "inf"),
        ("window", "5"),
        ("port", "70000"),
        ("measure", "wall"),
        ("device", "tpu"),
        ("max_queue", "0"),
    ],
)
def test_bad_values_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        load_settings({name: value}, None, {})


def test_a_key_of_the_file_that_was_meant_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "eenet.toml").write_text("budgetms = 1.5\n")
    with pytest.raises(
        ValueError, match=r"unknown setting 'budgetms' in .*eenet\.toml; did you mean 'budget_ms'\?"
    ):
        load_settings({}, tmp_path / "eenet.toml", {})


def test_a_variable_that_was_meant_is_suggested() -> None:
    with pytest.raises(ValueError, match=r"'EENET_WINDO' .*; did you mean 'EENET_WINDOW'\?"):
        load_settings({}, None, {"EENET_WINDO": "100"})


def test_the_precision_is_named_or_left_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings({}, None, {}).named_precision is None
    assert load_settings({"precision": "auto"}, None, {}).named_precision is None
    monkeypatch.setenv("EENET_PRECISION", "int8")
    assert load_settings({}, None, {"EENET_PRECISION": "int8"}).named_precision == "int8"
    with pytest.raises(ValueError, match="'auto', 'float32', 'float16' or 'int8'"):
        load_settings({"precision": "int4"}, None, {})
