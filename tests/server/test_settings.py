from pathlib import Path

import pytest

import server.settings
from server.cores import Cores
from server.limits import Limits
from server.listener import ADMIN_STOP_S
from server.processes.control_process import STOP_S
from server.processes.supervisor import UNKILLABLE_S
from server.settings import Settings, limits_of, load_settings, share_of


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


@pytest.mark.parametrize(
    ("device", "devices"),
    [
        ("auto", ("auto",)),
        ("cuda", ("cuda",)),
        ("cuda:0,cuda:1", ("cuda:0", "cuda:1")),
        ("cuda,cuda:1", ("cuda", "cuda:1")),
        ("tensorrt:0,tensorrt:12", ("tensorrt:0", "tensorrt:12")),
        ("openvino:GPU.1", ("openvino:GPU.1",)),
    ],
)
def test_several_gpus_may_be_listed(device: str, devices: tuple[str, ...]) -> None:
    settings = load_settings({"device": device}, None, {})
    assert settings.devices == devices
    if len(devices) > 1:
        with pytest.raises(ValueError, match=f"one process runs one device, not '{device}'"):
            _ = settings.one_device


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:0,cuda:0", "cuda:0 is listed twice; list each device once"),
        ("cuda:1,cuda,cuda:0", "cuda:0 is listed twice"),
        ("cuda:0,tensorrt:1", "kinds of devices are mixed"),
        ("cuda:0,cpu", "pattern"),
        ("cpu,cpu", "pattern"),
        ("auto,cuda:0", "pattern"),
        ("cuda:0,", "pattern"),
        ("cuda:0, cuda:1", "pattern"),
        ("cuda:00", "pattern"),
        ("cuda:\u0661", "pattern"),
        ("cuda:0\n", "pattern"),
        ("openvino:CPU,openvino:GPU", "pattern"),
    ],
)
def test_other_lists_of_devices_are_refused(device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_settings({"device": device}, None, {})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"threads_per_run": 2, "backend": "replay"}, "--threads-per-run 2 is about ONNX Runtime"),
        ({"gpu_memory_mib": 64, "device": "cpu"}, "--backend onnx --device cpu does not use"),
        ({"gpu_memory_mib": 64, "backend": "torch"}, "--backend torch --device auto does not use"),
        ({"gpu_memory_mib": 0}, "gpu_memory_mib"),
        ({"decode_timeout_s": 0}, "decode_timeout_s"),
        ({"front_ends": -1}, "front_ends"),
        ({"max_disagreement": -0.1}, "max_disagreement"),
        ({"max_disagreement": 1}, "max_disagreement"),
        ({"max_disagreement": "nan"}, "max_disagreement"),
        ({"confidence": 0}, "confidence"),
        ({"confidence": 1}, "confidence"),
        ({"engines": 0}, "engines"),
        ({"budget_ms": 1e-300}, "budget_ms\n.*0.000001"),
        ({"uds": "a", "fd": 3}, "--uds a and --fd 3 exclude each other"),
        ({"fd": 0}, "fd"),
        ({"ssl_keyfile": "k"}, "--ssl-keyfile k has no certificate; give --ssl-certfile too"),
        ({"root_path": "ml"}, "root_path"),
        ({"root_path": "/ml/"}, "root_path"),
        ({"root_path": "/a?b"}, "root_path"),
        ({"cors_origin": "a.example"}, "'a.example' is not an origin"),
        ({"cors_origin": "https://a.example,"}, "'' is not an origin"),
        ({"cors_origin": "https://a.example/"}, "is not an origin"),
        ({"deregister_s": -1}, "deregister_s"),
    ],
)
def test_what_would_have_no_effect_or_no_sense_is_refused(
    flags: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_settings(flags, None, {})


def test_origins_are_separated_by_commas(tmp_path: Path) -> None:
    both = ("https://a.example", "http://localhost:3000")
    assert load_settings({"cors_origin": ",".join(both)}, None, {}).cors_origin == both
    (tmp_path / "c.toml").write_text(f"cors_origin = {list(both)}\n")
    assert load_settings({}, tmp_path / "c.toml", {}).cors_origin == both
    assert load_settings({"cors_origin": "*"}, None, {}).cors_origin == ("*",)


def test_the_password_of_a_private_key_is_masked_where_settings_are_shown() -> None:
    flags = {"ssl_certfile": "c", "ssl_keyfile_password": "open sesame"}
    settings = load_settings(flags, None, {})
    for shown in (settings.model_dump_json(), repr(settings), str(settings.model_dump())):
        assert "sesame" not in shown and "ssl_keyfile_password" in shown


def test_the_default_time_to_stop_is_below_what_containers_wait() -> None:
    settings = Settings()
    after_draining_s = 2 * STOP_S + UNKILLABLE_S + ADMIN_STOP_S
    assert settings.deregister_s + settings.drain_s + after_draining_s < 9


def test_processes_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"EENET_FRONT_ENDS": "0", "EENET_DECODE_TIMEOUT_S": "0.5"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    settings = load_settings({}, None, environ)
    assert (settings.front_ends, settings.engines, settings.decode_timeout_s) == (0, None, 0.5)


@pytest.mark.parametrize(
    ("device", "flags", "workers"),
    [
        ("cpu", {}, 6),
        ("cpu", {"threads_per_run": 4}, 1),
        ("cpu", {"threads_per_run": 8}, 1),
        ("cpu", {"engine_workers": 3}, 3),
        ("cuda:0", {}, 1),
        ("cuda:0", {"engine_workers": 2}, 2),
    ],
)
def test_one_process_has_a_worker_per_usable_core(
    device: str, flags: dict[str, object], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.settings, "usable_cores", lambda: Cores(6, "6 cores"))
    assert load_settings(flags, None, {}).workers_on(device) == workers


def test_the_defaults_of_all_bounds_are_those_of_the_settings() -> None:
    assert limits_of(Settings()) == Limits()


def test_front_ends_share_what_may_be_in_flight() -> None:
    whole = Settings(max_queue=100, max_connections=1000, max_held_mib=400)
    share = share_of(whole, 4)
    assert (share.max_queue, share.max_connections) == (25, 250)
    assert limits_of(share).max_held == 100 * 2**20
    assert limits_of(share_of(Settings(max_body_mib=8), 4)).max_held == 32 * 2**20


def test_a_share_that_holds_no_body_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--max-held-mib .* give at least 172, for 4 processes"):
        share_of(Settings(max_held_mib=171), 4)
    share_of(Settings(max_held_mib=172), 4)


def test_a_url_is_no_longer_than_a_head() -> None:
    with pytest.raises(ValueError, match="--max-url-kib 64"):
        Settings(max_url_kib=64)
