"""What all commands share: their help, and what they print."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profiling.evaluation.evaluate import Evaluation


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


def numbers(text: str) -> list[float]:
    """An option's numbers, with commas between."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers such as 1,2,3.3"
        ) from error


def log_step(step: str) -> None:
    """Tell a step of long work."""
    print(f"{step} ...", file=sys.stderr, flush=True)


def print_evaluations(rows: "Sequence[Evaluation]") -> None:
    """A table of what a scheduler makes of the test predictions."""
    print("budget ms   cost ms   accuracy %   exit rates")
    for row in rows:
        rates = " ".join(f"{rate:.2f}" for rate in row.exit_rates)
        print(f"{row.budget:9.3f} {row.test_cost:9.3f} {100 * row.test_accuracy:12.2f}   {rates}")


def require_training_extra() -> None:
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
