"""`eenet build`: turns a run into a bundle."""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from models.bundle import Weights
from scheduler.policies import DEFAULT_POLICY, POLICIES, describe_policies
from server.cli.options import (
    add_data,
    add_json,
    data_of_run,
    prepare_training,
    print_evaluations,
)
from server.cli.progress import StepLog

if TYPE_CHECKING:
    from server.pipeline.builder import BuildResult

EXAMPLE = "eenet build runs/mine --out my-bundle && eenet serve --bundle my-bundle"
STEPS, SECOND_STORAGE = 6, 1


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "folder", metavar="RUN", type=Path, help="folder of train, attach or import"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the bundle")
    parser.add_argument(
        "--name", help="the model's name in requests (default: the bundle folder's)"
    )
    add_data(parser, required=False, default="that of the training")
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default=DEFAULT_POLICY,
        help=f"exit policy to fit; {describe_policies()} (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        choices=get_args(Weights),
        default="float32",
        help="how graphs store weights; they compute in single precision (default: %(default)s)",
    )
    parser.add_argument(
        "--prune-vocabulary",
        action="store_true",
        help="keep only the WordPiece tokens that the training texts use",
    )
    parser.add_argument(
        "--torch-weights",
        action="store_true",
        help="store the trained network too, for serve --backend torch",
    )
    add_json(parser, "the results")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Build the bundle and print what it reaches."""
    prepare_training()
    # The exporter warns of libraries that are not needed, of its own changes, and of names that
    # two inputs of a text's stage share.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
    warnings.filterwarnings("ignore", "# The axis name: .* will not be used", UserWarning)
    from server.pipeline.builder import BuildOptions, build_bundle, load_run

    trained = load_run(args.folder)
    options = BuildOptions(
        name=args.name or args.out.resolve().name,
        data=data_of_run(args, trained.config),
        policy=args.policy,
        weights=args.weights,
        prune_vocabulary=args.prune_vocabulary,
        torch=args.torch_weights,
    )
    steps = STEPS + (SECOND_STORAGE if args.weights != "float32" else 0)
    built = build_bundle(trained, args.out, options, StepLog(steps))
    _print(built)
    return {
        "bundle": str(args.out),
        "exit_accuracy": built.exit_accuracy,
        "evaluations": [row._asdict() for row in built.evaluations],
    }


def _print(built: BuildResult) -> None:
    manifest = built.bundle.manifest
    print(f"{built.bundle.folder}: {manifest.num_exits} exits")
    for weights, measured in manifest.measured.items():
        accuracy = " ".join(f"{100 * share:.2f}" for share in measured.accuracy)
        latency = " ".join(f"{ms:.3f}" for ms in measured.latency_ms)
        print(f"{weights}: test accuracy {accuracy} %, latency {latency} ms")
    print(
        f"graphs and network differ by {built.disagreement:.1e} at most; default budget "
        f"{manifest.default_budget_ms} ms"
    )
    print_evaluations(built.evaluations)


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return f"stopped; {args.out} is as it was; the same command builds it from the start"
