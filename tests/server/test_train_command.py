import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.progress import Progress, TextColumn
from safetensors.torch import load_file, save_file

from models.resnet import cifar_resnet
from models.run import Conv, TrainConfig
from models.train import EpochReport
from server.cli import main
from server.train_command import _Show, claim_folder, config_of

CLASSES = ("bright", "dark")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Twenty training and six test pictures, 8x8, two classes."""
    random = np.random.default_rng(0)
    for part, rows in (("train", 10), ("test", 3)):
        for name, base in (("bright", 150), ("dark", 0)):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(rows):
                pixels = (base + random.integers(0, 100, (8, 8, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / f"data/{part}/{name}/{i}.png")
    return tmp_path / "data"


def command(dataset: Path, out: Path, *more: str) -> list[str]:
    settings = ["--arch", "resnet8", "--exits", "1", "--heads", "4/2", "--calibration-size", "4"]
    sizes = ["--batch-size", "8", "--epochs", "2"]
    return ["train", "--dataset", str(dataset), "--out", str(out), *settings, *sizes, *more]


def arguments(**changes: object) -> argparse.Namespace:
    values = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    values |= {"arch": "resnet20", "exits": "3,6", "heads": "8/2,8/1;4/1", "dataset": Path("d")}
    return argparse.Namespace(**values | changes)


def config(**changes: object) -> TrainConfig:
    return dataclasses.replace(config_of(arguments()), **changes)  # type: ignore[arg-type]


def test_training_fills_the_run_folder_and_reports(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs/mine"
    assert main(command(dataset, out, "--json")) == 0
    said = capsys.readouterr()
    reports = json.loads(said.out)
    assert [report["epoch"] for report in reports] == [1, 2]
    assert all(len(report["test_accuracy"]) == 2 for report in reports)
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["epoch 1", "epoch 2"]
    run = json.loads((out / "run.json").read_text())
    assert run["classes"] == list(CLASSES)
    assert TrainConfig.from_json(run["config"]).heads == ((Conv(4, 2),),)
    cifar_resnet(8, 2, (1,), ((Conv(4, 2),),)).load_state_dict(load_file(out / "best.safetensors"))


def test_a_finished_run_is_reported_again_and_not_trained(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(command(dataset, out, "--json")) == 0
    first, weights = capsys.readouterr(), (out / "last.safetensors").read_bytes()
    assert main(command(dataset, out, "--json")) == 0
    second = capsys.readouterr()
    assert second.out == first.out and second.err == ""
    assert (out / "last.safetensors").read_bytes() == weights


def test_without_json_nothing_is_printed_on_stdout(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(dataset, tmp_path / "run", "--epochs", "1")) == 0
    assert capsys.readouterr().out == ""


def test_other_settings_for_the_same_folder_are_one_sentence(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(dataset, tmp_path / "run", "--epochs", "1")) == 0
    capsys.readouterr()
    assert main(command(dataset, tmp_path / "run", "--epochs", "3")) == 2
    said = capsys.readouterr().err
    assert "holds a run with epochs = 1, not 3" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--batch-size", "17"), "batch size 17 exceeds the 16 training images"),
        (("--calibration-size", "20"), "calibration size 20 must lie between 1 and 19"),
        (("--dataset", "nowhere"), "data set nowhere is neither"),
        (("--exits", "7"), "must rise and lie between 1 and 2"),
        (("--heads", "4/0"), "heads '4/0'"),
        (("--arch", "resnet9"), "depth 9 is not 6n+2"),
    ],
)
def test_a_setting_that_fails_is_one_sentence_and_claims_no_folder(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, str],
    sentence: str,
) -> None:
    assert main(command(dataset, tmp_path / "run", *more)) == 2
    said = capsys.readouterr().err
    assert said.startswith("eenet: ") and sentence in said and said.count("\n") == 1
    assert not (tmp_path / "run/run.json").exists()


def test_training_may_start_from_a_plain_network(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"conv1.weight": cifar_resnet(8, 2, (), ()).stages[0][0][0].weight.data},
              tmp_path / "plain.safetensors")  # fmt: skip
    assert main(command(dataset, tmp_path / "run", "--init", f"{tmp_path}/plain.safetensors")) == 2
    assert "plain.safetensors lacks 'bn1.weight'" in capsys.readouterr().err


def test_the_command_line_becomes_the_config(tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").touch()
    made = config_of(arguments(init=tmp_path / "p.safetensors", epochs=7, peak_lr=0.3, seed=5))
    assert (made.depth, made.exits) == (20, (3, 6))
    assert made.heads == ((Conv(8, 2), Conv(8, 1)), (Conv(4, 1),))
    assert (made.dataset, made.init) == ("d", str(tmp_path / "p.safetensors"))
    assert (made.epochs, made.peak_lr, made.seed) == (7, 0.3, 5)


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.safetensors does not exist"):
        config_of(arguments(init=tmp_path / "nowhere.safetensors"))


def test_every_setting_of_the_run_can_be_given() -> None:
    numbers = {
        field.name: field.default + 1
        for field in dataclasses.fields(TrainConfig)
        if isinstance(field.default, int | float)
        and field.name not in ("distill_temperature", "distill_from")
    }
    made = dataclasses.asdict(config_of(arguments(**numbers)))
    assert {name: made[name] for name in numbers} == numbers


def test_no_exits_make_a_plain_network() -> None:
    made = config_of(arguments(exits="none"))
    assert (made.exits, made.heads) == ((), ())


@pytest.mark.parametrize("arch", ["resnet", "vgg16", "resnet56x", "ResNet56", "resnet-56", ""])
def test_an_unknown_architecture_is_named(arch: str) -> None:
    with pytest.raises(ValueError, match=f"architecture '{arch}' is unknown; use resnet20"):
        config_of(arguments(arch=arch))


@pytest.mark.parametrize("exits", ["", "9,", "a", "9;18", "1.5", "None"])
def test_exits_that_are_no_numbers_are_named(exits: str) -> None:
    with pytest.raises(ValueError, match=f"exits '{exits}' are not block numbers"):
        config_of(arguments(exits=exits))


def test_a_folder_may_be_claimed_again_by_the_same_run(tmp_path: Path) -> None:
    for _ in range(2):
        claim_folder(tmp_path / "deep/run", config(), CLASSES)
    run = json.loads((tmp_path / "deep/run/run.json").read_text())
    assert TrainConfig.from_json(run["config"]) == config()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("depth", 32),
        ("exits", (3, 7)),
        ("heads", ((), ())),
        ("dataset", "e"),
        ("calibration_size", 7),
        ("init", "p.safetensors"),
        ("epochs", 7),
        ("batch_size", 7),
        ("peak_lr", 0.7),
        ("weight_decay", 0.7),
        ("distill_weight", 0.7),
        ("seed", 7),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_left_alone(
    tmp_path: Path, name: str, value: object
) -> None:
    claim_folder(tmp_path, config(), CLASSES)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ValueError, match=f"holds a run with {name} = .*give another --out"):
        claim_folder(tmp_path, config(**{name: value}), CLASSES)
    assert (tmp_path / "run.json").read_bytes() == before


def test_progress_is_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(file=sys.stderr, force_terminal=True, width=300, color_system=None)
    columns = (
        TextColumn("{task.completed:.0f} of {task.total}"),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=console) as bar:
        show = _Show(bar, 200)
        show.step(100, 1.25)
        show.epoch(EpochReport(1, 1.5, [0.5, 0.75], [0.25, 1.0], 3.0))
    said = capsys.readouterr().err
    assert "100 of 200 loss 1.250" in said
    assert "epoch 1: loss 1.500, accuracy per exit: test 25.00 100.00 %" in said


def test_progress_elsewhere_is_a_line_every_hundred_steps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show = _Show(None, 250)
    for step in range(1, 251):
        show.step(step, 1.0)
    assert capsys.readouterr().err.splitlines() == [
        "step 100/250 loss 1.000",
        "step 200/250 loss 1.000",
    ]
