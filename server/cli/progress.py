"""A training told on a terminal or in plain lines, into the folder of a run."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.bundle import TOKENIZER
from models.data.dataset import DataConfig, Dataset
from models.networks.multi_exit import MultiExitModel
from models.training.batches import batches_for
from models.training.run import RUN_FILE, RunConfig, TrainConfig, create_run_dir
from models.training.trainer import EpochReport, Trainer

PLAIN_STEPS = 100  # between two plain lines
ADAMW = {"optimizer": "adamw", "peak_lr": 5e-5, "weight_decay": 0.01}  # where adamw is asked for
ENCODER = {**ADAMW, "epochs": 3, "batch_size": 32}  # of pretrained transformers
NEW_ENCODER = {**ADAMW, "peak_lr": 5e-4, "batch_size": 32}  # of one that knows nothing yet


def train_config(args: argparse.Namespace, defaults: Mapping[str, Any]) -> TrainConfig:
    """How to train, from the flags; what they leave open is as in `defaults`."""
    names = set(TrainConfig.__dataclass_fields__) & set(vars(args))
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if given.get("optimizer") == "adamw":
        defaults = {**defaults, **ADAMW}
    return TrainConfig(**{**defaults, **given})


def run_training(
    args: argparse.Namespace,
    config: RunConfig,
    data: DataConfig,
    dataset: Dataset,
    model: MultiExitModel,
    tokenizer: str | None = None,
) -> list[EpochReport]:
    """Train, or go on with, the run in `args.out`.

    Args:
        args: Flags of a command that trains.
        config: The run, its data left out.
        data: Its dataset.
        dataset: The same, loaded.
        model: To start from.
        tokenizer: Content of `tokenizer.json`, of a run that reads texts.

    Raises:
        ValueError: If the folder holds a run of other settings or another tokenizer, or the device
            is not available.
    """
    assert config.training is not None, "imported runs are not trained"
    run = replace(config, data=asdict(data))
    args.out.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        _write_tokenizer(args.out, tokenizer)
    trainer = Trainer(
        config.training,
        dataset,
        batches_for(dataset.task, config.input, args.out / TOKENIZER),
        args.out,
        model,
        device=device_of(args.device),
        compiled=args.compile,
    )
    create_run_dir(args.out, run)  # last: settings that fail claim nothing
    with _progress(config.training.epochs * trainer.steps_per_epoch) as show:
        return trainer.run(show.step, show.epoch)


def _write_tokenizer(folder: Path, tokenizer: str) -> None:
    path = folder / TOKENIZER
    same = path.exists() and path.read_text() == tokenizer
    if (folder / RUN_FILE).exists() and not same:
        raise ValueError(
            f"{folder} holds a run with another tokenizer; give another --out, or the same "
            f"tokenizer to go on with it"
        )
    part = path.with_suffix(".part")
    part.write_text(tokenizer)
    part.replace(path)


def device_of(name: str) -> str:
    """The device of torch that a flag means; auto: a GPU where there is one.

    Raises:
        ValueError: If it is not available.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} is not available: torch finds no GPU here; use cpu")
    try:
        return str(torch.device(name))
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown; use auto, cpu or cuda") from error


class ProgressReporter:
    """Tells of steps and epochs; a bar on a terminal, plain lines elsewhere."""

    def __init__(self, bar: Progress | None, total: int) -> None:
        self.bar = bar
        self.total = total
        self.task = bar.add_task("training", total=total, loss="") if bar else None

    def step(self, step: int, loss: float) -> None:
        """Show the loss of a step."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=step, loss=f"loss {loss:.3f}")
        elif step % PLAIN_STEPS == 0:
            print(f"step {step}/{self.total} loss {loss:.3f}", file=sys.stderr, flush=True)

    def epoch(self, report: EpochReport) -> None:
        """Print the accuracies of an epoch."""
        test, calibration = (
            " ".join(f"{100 * share:.2f}" for share in accuracy)
            for accuracy in (report.test_accuracy, report.calibration_accuracy)
        )
        line = (
            f"epoch {report.epoch}: loss {report.train_loss:.3f}, accuracy per exit: "
            f"test {test} %, calibration {calibration} % ({report.seconds:.0f} s)"
        )
        if self.bar is not None:
            self.bar.console.print(line)
        else:
            print(line, file=sys.stderr, flush=True)


@contextmanager
def _progress(total: int) -> Iterator[ProgressReporter]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressReporter(None, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        yield ProgressReporter(bar, total)
