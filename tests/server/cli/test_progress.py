import io

import pytest

from models.training.run import TrainConfig
from models.training.trainer import EpochReport
from server.cli.main import build_parser
from server.cli.progress import Progress, StepLog, format_seconds
from server.cli.train import ENCODER, TrainingReporter, train_config


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def trained_with(*flags: str, **defaults: object) -> TrainConfig:
    command = ["train", "--arch", "resnet20", "--dataset", "d", "--out", "run", *flags]
    return train_config(build_parser().parse_args(command), defaults)


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


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (3725, "1:02:05")]
)
def test_seconds_are_shown_as_a_clock_does(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown


def test_progress_in_a_file_is_a_line_every_five_seconds_with_the_time_left() -> None:
    clock, out = Clock(), io.StringIO()
    shown = Progress("row", 120, stream=out, clock=clock)
    for done in range(1, 13):
        clock.now_s += 1
        shown.update(done, "fine")
    shown.close()
    assert out.getvalue().splitlines() == [
        "row 5/120 fine (0:05 elapsed, about 1:55 left)",
        "row 10/120 fine (0:10 elapsed, about 1:50 left)",
    ]


def test_work_done_before_a_resume_is_not_taken_for_fast() -> None:
    clock, out = Clock(), io.StringIO()
    shown = Progress("row", 120, done=60, stream=out, clock=clock)
    clock.now_s += 6
    shown.update(66)
    assert out.getvalue() == "row 66/120 (0:06 elapsed, about 0:54 left)\n"


def test_progress_on_a_terminal_is_a_bar_below_the_lines_and_gone_at_the_end() -> None:
    clock, out = Clock(), Terminal()
    shown = Progress("row", 4, stream=out, clock=clock)
    clock.now_s += 1
    shown.update(1)
    assert (
        out.getvalue()
        == "\r\x1b[K[######                  ] row 1/4 (0:01 elapsed, about 0:03 left)"
    )
    shown.log("a line")
    assert out.getvalue().endswith("\r\x1b[Ka line\n")
    clock.now_s += 1
    shown.update(2)
    shown.close()
    assert out.getvalue().endswith("\r\x1b[K")


def test_steps_are_numbered_and_tell_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    log_step = StepLog(3, similar=True, clock=clock)
    for name in ("one", "two", "three"):
        log_step(name)
        clock.now_s += 40
    assert capsys.readouterr().err.splitlines() == [
        "[1/3] one ...",
        "[2/3] two (0:40 elapsed, about 1:20 left) ...",
        "[3/3] three (1:20 elapsed, about 0:40 left) ...",
    ]


def test_a_training_shows_its_loss_and_prints_its_epochs() -> None:
    clock, out = Clock(), io.StringIO()

    def display(label: str, total: float, *, done: float) -> Progress:
        return Progress(label, total, done=done, stream=out, clock=clock)

    reporter = TrainingReporter(200, display)
    reporter.step(101, 1.5)
    clock.now_s += 10
    reporter.step(120, 1.25)
    reporter.epoch(EpochReport(1, 1.5, [0.5, 0.75], [0.25, 1.0], 3.0))
    reporter.close()
    assert out.getvalue().splitlines() == [
        "step 120/200 loss 1.250 (0:10 elapsed, about 0:40 left)",
        "epoch 1: loss 1.500, accuracy per exit: test 25.00 100.00 %, "
        "calibration 50.00 75.00 % (3 s)",
    ]
