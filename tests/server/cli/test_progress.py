import sys

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from models.training.run import TrainConfig
from models.training.trainer import EpochReport
from server.cli.main import _parser
from server.cli.progress import ENCODER, ProgressReporter, train_config


def trained_with(*flags: str, **defaults: object) -> TrainConfig:
    command = ["train", "--arch", "resnet20", "--dataset", "d", "--out", "run", *flags]
    return train_config(_parser().parse_args(command), defaults)


def test_what_no_flag_says_is_as_it_was() -> None:
    assert trained_with() == TrainConfig()
    assert trained_with(**ENCODER) == TrainConfig(**ENCODER)


def test_every_setting_of_a_training_has_its_flag() -> None:
    flags = {
        "epochs": 7,
        "batch_size": 9,
        "peak_lr": 0.3,
        "weight_decay": 0.01,
        "distill_weight": 0.5,
        "seed": 5,
    }
    given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    for made in (trained_with(*given), trained_with(*given, **ENCODER)):
        assert {name: getattr(made, name) for name in flags} == flags


def test_adamw_brings_its_own_rates_unless_told_otherwise() -> None:
    made = trained_with("--optimizer", "adamw")
    assert (made.optimizer, made.peak_lr, made.weight_decay) == ("adamw", 5e-5, 0.01)
    made = trained_with("--optimizer", "adamw", "--peak-lr", "0.001")
    assert (made.peak_lr, made.weight_decay) == (0.001, 0.01)


def test_progress_is_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(file=sys.stderr, force_terminal=True, width=300, color_system=None)
    columns = (
        TextColumn("{task.completed:.0f} of {task.total}"),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=console) as bar:
        show = ProgressReporter(bar, 200)
        show.step(100, 1.25)
        show.epoch(EpochReport(1, 1.5, [0.5, 0.75], [0.25, 1.0], 3.0))
    said = capsys.readouterr().err
    assert "100 of 200 loss 1.250" in said
    assert "epoch 1: loss 1.500, accuracy per exit: test 25.00 100.00 %" in said
    assert "calibration 50.00 75.00 %" in said


def test_progress_elsewhere_is_a_line_every_hundred_steps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show = ProgressReporter(None, 250)
    for step in range(1, 251):
        show.step(step, 1.0)
    assert capsys.readouterr().err.splitlines() == [
        "step 100/250 loss 1.000",
        "step 200/250 loss 1.000",
    ]
