"""From an entry of a Triton repository to answers over HTTP."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from models.bundle import load_bundle
from server.cli.main import main
from tests.onnx_models import (
    COLOURS,
    colour_dataset,
    colour_images,
    exits_net,
    plain_net,
    save,
)
from tests.server.pipeline.test_own_onnx import ask, build, colours, command, serve  # noqa: F401
from tests.server.pipeline.test_own_onnx_text import NAMES, export

pytestmark = pytest.mark.usefixtures("quick_builds")

CONFIG = """
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "input" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 16, 16 ] } ]
output [ { name: "scores" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" } ]
dynamic_batching { max_queue_delay_microseconds: 100 }
"""
PROCESSOR = {
    "size": {"height": 16, "width": 16},
    "do_normalize": False,
    "image_processor_type": "AnyImageProcessor",
}


def entry(folder: Path, config: str) -> Path:
    """An entry whose labels stand in the order of the dataset, with two versions."""
    folder.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    (folder / "labels.txt").write_text("\n".join(COLOURS))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (folder / "1").mkdir()
    (folder / "1" / "model.onnx").write_text("an old version")
    return folder


@pytest.mark.slow
def test_a_classifier_gets_exits_and_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = entry(tmp_path / "repository" / "colours", CONFIG)
    save(plain_net(4), folder / "2" / "model.onnx")
    dataset, run = colour_dataset(tmp_path / "data"), tmp_path / "run"
    flags = ("--num-exits", 3, "--calibration-size", 60)
    given = command("import", "--triton", folder, "--dataset", dataset, "--out", run, *flags)
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert f"model: {folder}/2/model.onnx, version 2 of colours" in printed
    assert "classes of its labels: blue, green, red" in printed
    assert "ignored, as it says how Triton runs the model: dynamic_batching" in printed
    assert "eenet build --name colours" in printed

    out = build(run, "--name", "colours")
    described = load_bundle(out).manifest
    assert described.num_exits == 3 and described.classes == COLOURS
    with serve(out) as client:
        client.put("/budget", json={"budget_ms": 1000}).raise_for_status()
        answers = {
            name: [ask(client, pixels)["label"] for pixels in images]
            for name, images in colour_images(8, seed=5).items()
        }
    right = sum(labels.count(name) for name, labels in answers.items())
    assert right >= 16, answers


@pytest.mark.slow
def test_several_outputs_are_the_exits(tmp_path: Path) -> None:
    outputs = ", ".join(f'{{ name: "exit_{k}" data_type: TYPE_FP32 dims: 3 }}' for k in (0, 2))
    config = CONFIG[: CONFIG.index("output")] + f"output [ {outputs} ]"
    folder = entry(tmp_path / "colours", config)
    save(exits_net(3), folder / "2" / "model.onnx")
    dataset, run = colour_dataset(tmp_path / "data"), tmp_path / "run"
    flags = ("--dataset", dataset, "--out", run, "--calibration-size", 60, "--json")
    assert main(command("import", "--triton", folder, *flags)) == 0
    assert load_bundle(build(run)).manifest.num_exits == 2  # the output that is left out is none


@pytest.mark.slow
def test_token_ids_with_mask_and_types(backbone: Path, reviews: Path, tmp_path: Path) -> None:
    inputs = ", ".join(f'{{ name: "{name}" data_type: TYPE_INT64 dims: [ -1 ] }}' for name in NAMES)
    output = 'output { name: "scores" data_type: TYPE_FP32 dims: [ 2 ] }'
    folder = entry(tmp_path / "bert", f"max_batch_size: 4 input [ {inputs} ] {output}")
    (folder / "preprocessor_config.json").unlink()
    shutil.copy(backbone / "tokenizer.json", folder)
    (folder / "2").mkdir()
    export(backbone, folder / "2" / "model.onnx", dynamo=False, length=None)
    flags = ("--dataset", reviews, "--calibration-from", "train", "--num-exits", 2)
    run = tmp_path / "run"
    assert main(command("import", "--triton", folder, *flags, "--out", run)) == 0
    described = load_bundle(build(run)).manifest
    assert described.task == "text" and described.num_exits == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("blue\ngreen\nRed", "have 'Red', which is no class of the dataset; its classes are blue"),
        ("blue\ngreen", "have 2 names, not every class of the dataset; its classes are blue"),
    ],
)
def test_labels_that_are_not_the_classes(
    labels: str,
    said: str,
    tmp_path: Path,
    colours: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = entry(tmp_path / "colours", CONFIG)
    (folder / "labels.txt").write_text(labels)
    save(plain_net(2), folder / "2" / "model.onnx")
    flags = ("--dataset", colours, "--out", tmp_path / "run", "--calibration-size", 60)
    assert main(command("import", "--triton", folder, *flags)) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--triton d --onnx a.onnx", "give one network"),
        ("--triton d", "--triton needs --dataset"),
        ("--triton d --dataset d --arch msdnet", "with --triton, give --preprocessing"),
        ("--triton absent --dataset d", "absent is no folder; give NAME of a repository"),
        ("--onnx a.onnx --num-exits 3", "--num-exits belongs to --triton"),
    ],
)
def test_flags_that_do_not_go_together(
    words: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import", *words.split(), "--out", "run"]) == 2
    assert said in capsys.readouterr().err
