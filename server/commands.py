"""`eenet train` and `eenet build`, and what all commands share: flags, and what they print."""

import argparse
import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.run import TrainConfig
from scheduler.scheduler import DEFAULT_POLICY, POLICIES

if TYPE_CHECKING:
    from profiling.evaluate import Evaluation


def command(
    commands: Any, name: str, text: str, example: str, run: Callable[..., None]
) -> argparse.ArgumentParser:
    """Add a command with its help, an example and what runs it."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_train(commands: Any) -> None:
    """`eenet train`."""
    example = "eenet train --arch resnet56 --exits 9,18 --dataset cifar10_jpegs.npz --out runs/mine"
    parser = command(
        commands,
        "train",
        "Train a multi-exit network; goes on where it was stopped.",
        example,
        _train,
    )
    parser.add_argument(
        "--arch", required=True, help="resnet20, resnet32, resnet44, resnet56 or resnet110"
    )
    parser.add_argument(
        "--dataset",
        required=True,
        type=Path,
        help="an .npz of encoded images, or a folder train/CLASS, test/CLASS",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the run")
    parser.add_argument(
        "--exits", default="9,18", help="blocks after which an exit stands, or none (default: 9,18)"
    )
    parser.add_argument(
        "--heads",
        default="32/2,64/2,96/1,128/2;64/2,128/2,128/1",
        help="3x3 convolutions of each early head, CHANNELS/STRIDE (default: %(default)s)",
    )
    parser.add_argument("--init", type=Path, help="safetensors of a plain network to start from")
    for name, kind, text in (
        ("calibration_size", int, "training images held out"),
        ("epochs", int, "passes over the data"),
        ("batch_size", int, "rows a step"),
        ("peak_lr", float, "highest learning rate"),
        ("weight_decay", float, "of SGD"),
        ("distill_weight", float, "alpha_KL, how much the last exit teaches the others"),
        ("seed", int, "of everything random"),
    ):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(
            flag, type=kind, default=_train_default(name), help=f"{text} (default: %(default)s)"
        )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="train through torch.compile: a minute to start, 15 %% faster",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the reports as one JSON document last"
    )


def _train_default(name: str) -> Any:
    return next(field.default for field in dataclasses.fields(TrainConfig) if field.name == name)


def _train(args: argparse.Namespace) -> None:
    need_training_extra()
    from server.train_command import train

    log_to_stderr("warning")
    reports = train(args)
    if args.json:
        print(json.dumps([report._asdict() for report in reports]))


def add_build(commands: Any) -> None:
    """`eenet build`."""
    example = "eenet build runs/mine --out my-bundle && eenet serve --bundle my-bundle"
    parser = command(
        commands,
        "build",
        "Export, calibrate, profile and fit: a run becomes a bundle.",
        example,
        _build,
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of `eenet train`")
    parser.add_argument("--out", required=True, type=Path, help="folder of the bundle")
    parser.add_argument(
        "--name", help="the model's name in requests (default: the bundle folder's)"
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        help="where the data set lies now (default: where it lay in training)",
    )
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default=DEFAULT_POLICY,
        help="scheduler (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the results as one JSON document last"
    )


def _build(args: argparse.Namespace) -> None:
    need_training_extra()
    from server.build import build_bundle, load_run

    log_to_stderr("warning")
    # The exporter speaks of libraries that are not needed and of its own inner changes.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
    built = build_bundle(
        load_run(args.folder),
        args.out,
        name=args.name or args.out.resolve().name,
        dataset=args.dataset,
        policy=args.policy,
        say=say,
    )
    accuracy = " ".join(f"{100 * share:.2f}" for share in built.exit_accuracy)
    print(
        f"{built.bundle.folder}: {built.bundle.manifest.num_exits} exits, test accuracy "
        f"{accuracy} %"
    )
    print(
        f"graphs and network differ by {built.disagreement:.1e} at most; default budget "
        f"{built.bundle.manifest.default_budget_ms} ms"
    )
    print_evaluations(built.evaluations)
    if args.json:
        evaluations = [row._asdict() for row in built.evaluations]
        print(
            json.dumps(
                {
                    "bundle": str(args.out),
                    "exit_accuracy": built.exit_accuracy,
                    "evaluations": evaluations,
                }
            )
        )


def say(step: str) -> None:
    """Tell a step of long work."""
    print(f"{step} ...", file=sys.stderr, flush=True)


def print_evaluations(rows: "Sequence[Evaluation]") -> None:
    """A table of what a scheduler makes of the test predictions."""
    print("budget ms   cost ms   accuracy %   exit rates")
    for row in rows:
        rates = " ".join(f"{rate:.2f}" for rate in row.exit_rates)
        print(f"{row.budget:9.3f} {row.test_cost:9.3f} {100 * row.test_accuracy:12.2f}   {rates}")


def need_training_extra() -> None:
    """Say what to install where the making of bundles is not."""
    try:
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed; training and building need the extra: pip install "
            f"'.[train,cpu]'"
        ) from error


def log_to_stderr(level: str) -> None:
    """Log lines of a level and above."""
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
