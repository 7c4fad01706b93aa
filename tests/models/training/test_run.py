import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from models.data.dataset import DataConfig
from models.networks.heads import Conv
from models.training.run import RunConfig, TrainConfig, create_run_dir, read_run, write_json

TRAINED = RunConfig(
    arch="resnet8",
    settings={"num_classes": 2, "exits": [1, 2], "heads": [[], [[4, 2], [6, 1]]]},
    classes=("cat", "dog"),
    input={"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]},
    data=asdict(DataConfig("pets", calibration_size=7, image_size=32, seed=3)),
    training=TrainConfig(epochs=3, heads_only=True, seed=3),
    start="plain.safetensors",
)
IMPORTED = RunConfig(
    arch="bert_4",
    settings={"num_labels": 2},
    classes=(),
    input={"max_tokens": 12, "pad_id": 0},
    start="net.pth",
    costs_ms=(1.5, 2.25),
)


def test_heads_are_written_as_plain_lists(tmp_path: Path) -> None:
    heads = ((), (Conv(4, 2), Conv(6, 1)))
    create_run_dir(tmp_path, replace(TRAINED, settings={**TRAINED.settings, "heads": heads}))
    assert read_run(tmp_path) == TRAINED


def test_the_same_run_may_claim_its_folder_again(tmp_path: Path) -> None:
    for _ in range(2):
        create_run_dir(tmp_path, TRAINED)
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_run_from_before_a_setting_existed_has_its_default_and_can_be_resumed(
    tmp_path: Path,
) -> None:
    create_run_dir(tmp_path, TRAINED)
    values = json.loads((tmp_path / "run.json").read_text())
    for name in ("calibration_from", "certification_size"):
        del values["data"][name]
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert read_run(tmp_path) == TRAINED
    create_run_dir(tmp_path, TRAINED)
    assert json.loads((tmp_path / "run.json").read_text())["data"]["calibration_from"] == "train"


def test_a_run_from_before_rows_were_drawn_by_class_keeps_its_rows(tmp_path: Path) -> None:
    create_run_dir(tmp_path, TRAINED)
    values = json.loads((tmp_path / "run.json").read_text())
    del values["data"]["stratified"]
    (tmp_path / "run.json").write_text(json.dumps(values))
    data = read_run(tmp_path).data
    assert data is not None and data["stratified"] is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "resnet20"}, r"arch = 'resnet8', not 'resnet20'; give another --out"),
        ({"classes": ("cat", "cow")}, r"classes = \['cat', 'dog'\], not \['cat', 'cow'\]"),
        ({"settings": {**TRAINED.settings, "exits": [1]}}, r"exits = \[1, 2\], not \[1\]"),
        ({"settings": {"num_classes": 2, "exits": [1, 2]}}, r"with heads = .*, not None"),
        ({"settings": {**TRAINED.settings, "depth": 8}}, "depth = None, not 8"),
        ({"input": {"mean": [0.5] * 3, "std": [0.1, 0.2, 0.3]}}, r"mean = \[0.5, 0.4, 0.3\], not"),
        ({"data": {**TRAINED.data, "dataset": "wild"}}, "dataset = 'pets', not 'wild'"),  # type: ignore[dict-item]
        ({"training": TrainConfig(epochs=4, heads_only=True, seed=3)}, "epochs = 3, not 4"),
        ({"start": None}, "start = 'plain.safetensors', not None"),
        ({"costs_ms": (1.0,)}, r"costs_ms = None, not \[1.0\]"),
        ({"training": None}, "with training = None|with epochs = 3, not None"),
    ],
)
def test_another_run_is_refused_by_the_setting_that_differs(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    create_run_dir(tmp_path, TRAINED)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ValueError, match=rf"{tmp_path} holds a run with .*{message}|{message}"):
        create_run_dir(tmp_path, replace(TRAINED, **changes))
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=rf"{folder} holds no run\.json; give a folder of"):
            read_run(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '{"format_version": 2}', '{"arch": "resnet8"}']
)
def test_a_damaged_run_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is damaged \(.*make the run again"):
        read_run(tmp_path)


@pytest.mark.parametrize("place", [(), ("training",)])
def test_an_unknown_setting_is_damage(tmp_path: Path, place: tuple[str, ...]) -> None:
    create_run_dir(tmp_path, TRAINED)
    values = json.loads((tmp_path / "run.json").read_text())
    part = values
    for name in place:
        part = part[name]
    part["colour"] = "red"
    (tmp_path / "run.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"damaged .*colour"):
        read_run(tmp_path)


@pytest.mark.parametrize("version", [1, 3, None, "2"])
def test_a_run_of_another_version_is_told(tmp_path: Path, version: object) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"format_version": version, "new": 1}))
    with pytest.raises(ValueError, match=rf"has format version {version}, this program reads 2"):
        read_run(tmp_path)


def test_json_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def die(part: Path, path: Path) -> None:
        raise Killed

    path = tmp_path / "run.json"
    write_json({"a": 1}, path)
    with pytest.raises(TypeError):
        write_json({"a": object()}, path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", die)
        write_json({"a": 2}, path)
    assert json.loads(path.read_text()) == {"a": 1}
    write_json({"a": 3}, path)
    assert json.loads(path.read_text()) == {"a": 3}
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("name", ["epochs", "batch_size", "peak_lr", "distill_temperature"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_what_must_be_positive_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be above 0"):
        TrainConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["adam", "SGD", "", None])
def test_another_optimizer_is_refused(optimizer: Any) -> None:
    with pytest.raises(ValueError, match=f"optimizer is {optimizer!r}; use sgd or adamw"):
        TrainConfig(optimizer=optimizer)
