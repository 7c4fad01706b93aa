"""`eenet train`: settings, progress on a terminal or in plain lines, and the run's folder."""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.data import load_dataset
from models.resnet import cifar_resnet, load_plain_weights
from models.run import TrainConfig, parse_heads
from models.train import EpochReport, Trainer, write_json

PLAIN_STEPS = 100  # between two plain lines


def train(args: argparse.Namespace) -> list[EpochReport]:
    """Train, or go on with, the run in `args.out`."""
    config = config_of(args)
    dataset = load_dataset(args.dataset, calibration_size=config.calibration_size, seed=config.seed)
    torch.manual_seed(config.seed)
    model = cifar_resnet(config.depth, len(dataset.classes), config.exits, config.heads)
    if args.init is not None:
        load_plain_weights(model, args.init)
    trainer = Trainer(config, dataset, args.out, model, compiled=args.compile)
    claim_folder(args.out, config, dataset.classes)  # last: settings that fail claim nothing
    with _progress(config.epochs * trainer.steps_per_epoch) as show:
        return trainer.run(show.step, show.epoch)


def config_of(args: argparse.Namespace) -> TrainConfig:
    """The run's configuration from the command line.

    Raises:
        ValueError: If the architecture, exits or heads make no sense.
    """
    arch = re.fullmatch(r"resnet(\d+)", args.arch)
    if not arch:
        raise ValueError(
            f"architecture {args.arch!r} is unknown; use resnet20, resnet32, resnet44, resnet56 "
            f"or resnet110"
        )
    if args.init is not None and not args.init.is_file():
        raise ValueError(f"{args.init} does not exist; --init takes a safetensors file")
    plain = args.exits == "none"
    try:
        exits = () if plain else tuple(int(block) for block in args.exits.split(","))
    except ValueError as error:
        raise ValueError(
            f"exits {args.exits!r} are not block numbers such as 9,18, nor none"
        ) from error
    return TrainConfig(
        depth=int(arch[1]),
        exits=exits,
        heads=() if plain else parse_heads(args.heads),
        dataset=str(args.dataset),
        calibration_size=args.calibration_size,
        init=None if args.init is None else str(args.init),
        epochs=args.epochs,
        batch_size=args.batch_size,
        peak_lr=args.peak_lr,
        weight_decay=args.weight_decay,
        distill_weight=args.distill_weight,
        seed=args.seed,
    )


def claim_folder(out: Path, config: TrainConfig, classes: tuple[str, ...]) -> None:
    """Write `run.json`, or check that the run already there is this one.

    Raises:
        ValueError: If the folder holds a run of other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    path, values = out / "run.json", config.to_json()
    if path.exists():
        before = json.loads(path.read_text())
        for name, value in values.items():
            if before["config"].get(name) != value:
                raise ValueError(
                    f"{out} holds a run with {name} = {before['config'].get(name)!r}, not "
                    f"{value!r}; "
                    "give another --out, or the same settings to go on with it"
                )
    write_json({"format_version": 1, "config": values, "classes": list(classes)}, path)


class _Show:
    """Tells of steps and epochs; a bar on a terminal, plain lines elsewhere."""

    def __init__(self, bar: Progress | None, total: int) -> None:
        self.bar = bar
        self.total = total
        self.task = bar.add_task("training", total=total, loss="") if bar else None

    def step(self, step: int, loss: float) -> None:
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=step, loss=f"loss {loss:.3f}")
        elif step % PLAIN_STEPS == 0:
            print(f"step {step}/{self.total} loss {loss:.3f}", file=sys.stderr, flush=True)

    def epoch(self, report: EpochReport) -> None:
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
def _progress(total: int) -> Iterator[_Show]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Show(None, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        yield _Show(bar, total)
