"""`eenet build`: turns a run into a bundle."""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

from models.bundle import Manifest, Measured, Precision
from scheduler.policies import DEFAULT_POLICY, POLICIES, describe_policies
from server.cli.import_onnx import held_out_data
from server.cli.options import (
    add_data,
    add_json,
    add_prior,
    data_of_run,
    prepare_training,
    print_evaluations,
)
from server.cli.progress import StepLog

if TYPE_CHECKING:
    from server.pipeline.builder import BuildResult

log = logging.getLogger(__name__)

EXAMPLE = "eenet build runs/mine --out my-bundle --precision auto && eenet serve --bundle my-bundle"
PRECISIONS = (*get_args(Precision), "auto")
MIB = 2**20


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "folder", metavar="RUN", type=Path, nargs="?", help="folder of train, attach or import"
    )
    parser.add_argument(
        "--model",
        metavar="PACKAGE.MODULE:FUNCTION",
        help="in place of a run: a function without arguments that returns a "
        "models.MultiExitModel; its module is looked for in the current folder first, and its "
        "code runs (docs/own-models.md)",
    )
    parser.add_argument("--weights", metavar="FILE", help="for --model: its .safetensors")
    parser.add_argument(
        "--preprocessing",
        type=Path,
        metavar="FILE",
        help="for --model: JSON of how images or texts are prepared, or a tokenizer.json",
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
        help=f"exit policy that a server starts with; {describe_policies()}. stopping, its "
        f"label-free fit and eenet are fitted in any case (default: %(default)s)",
    )
    add_prior(parser)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="number format to compute in, beside float32: int8 for CPUs, float16 for GPUs, auto: "
        "what has the best frontier on this machine (default: %(default)s)",
    )
    parser.add_argument(
        "--max-precision-loss",
        type=float,
        default=0.005,
        metavar="SHARE",
        help="accuracy that an exit may lose by another precision than float32; one that loses "
        "more is left out (default: %(default)s)",
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
    parser.add_argument(
        "--license",
        help="licence for the bundle's model card, as the Hugging Face hub writes it: apache-2.0",
    )
    add_json(parser, "the results")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Build the bundle and print what it reaches."""
    prepare_training()
    if args.model is None and args.weights in get_args(Precision):
        args.precision = args.weights
        log.warning("--weights is called --precision now; this build computes in %s", args.weights)
    # The exporter warns of libraries that are not needed, of its own changes, and of names that
    # two inputs of a text's stage share.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
    warnings.filterwarnings("ignore", "# The axis name: .* will not be used", UserWarning)
    _check_source(args)
    with TemporaryDirectory() as folder:
        built = _build(args, Path(folder))
    _print(built)
    return _document(args, built)


def _check_source(args: argparse.Namespace) -> None:
    if (args.folder is None) == (args.model is None):
        raise ValueError("give one network: the folder of a run, or --model with --weights")
    if args.model is None and args.preprocessing is not None:
        raise ValueError("--preprocessing belongs to --model; a run has its own")
    if args.model is not None and None in (args.weights, args.dataset):
        raise ValueError("--model needs --weights, a .safetensors, and --dataset to calibrate on")


def _build(args: argparse.Namespace, folder: Path) -> BuildResult:
    """Build the run, or the module of --model; `folder` is empty and for files in between."""
    from server.pipeline.builder import BuildOptions, build_bundle
    from server.pipeline.own_module import OwnModule, load_own
    from server.pipeline.runs import Run, load_run

    if args.model is None:
        trained: Run = load_run(args.folder)
        data = data_of_run(args, trained.config)
    else:
        module = OwnModule(args.model, Path(args.weights), args.preprocessing, args.image_size)
        trained = load_own(module, folder)
        data = held_out_data(args)
    options = BuildOptions(
        name=args.name or args.out.resolve().name,
        data=data,
        policy=args.policy,
        prior=args.prior,
        precision=args.precision,
        max_precision_loss=args.max_precision_loss,
        prune_vocabulary=args.prune_vocabulary,
        torch=args.torch_weights,
        licence=args.license,
    )
    return build_bundle(trained, args.out, options, StepLog())


def _document(args: argparse.Namespace, built: BuildResult) -> dict[str, Any]:
    """What a bare --json prints."""
    first, *_ = built.evaluations
    evaluations = {
        precision: [row._asdict() for row in rows] for precision, rows in built.evaluations.items()
    }
    manifest = built.bundle.manifest
    return {
        "bundle": str(args.out),
        "exit_accuracy": list(_measured(manifest, first).accuracy),
        "evaluations": evaluations[first],
        "left_out": built.left_out,
        "precisions": {
            precision: {
                **_measured(manifest, precision).model_dump(mode="json"),
                "method": manifest.precisions[precision].method,
                "evaluations": rows,
            }
            for precision, rows in evaluations.items()
        },
    }


def _measured(manifest: Manifest, precision: Precision) -> Measured:
    measured = manifest.precisions[precision].measured
    assert measured is not None, "a build measures every precision"
    return measured


def _print(built: BuildResult) -> None:
    manifest = built.bundle.manifest
    print(
        f"{built.bundle.folder}: {manifest.num_exits} exits, graphs and network differ by "
        f"{built.disagreement:.1e} at most"
    )
    print("precision   exit   test accuracy %   change   latency ms      MiB")
    trained = manifest.trained
    assert trained is not None, "a build measures the network as trained"
    for precision in built.evaluations:
        measured = _measured(manifest, precision)
        for exit, (share, before, ms) in enumerate(
            zip(measured.accuracy, trained.accuracy, measured.latency_ms, strict=True)
        ):
            print(
                f"{precision:10} {exit:5d} {100 * share:17.2f} {100 * (share - before):+8.2f} "
                f"{ms:12.3f} {built.bundle.variant(precision).exit_bytes(exit) / MIB:8.2f}"
            )
    for reason in built.left_out:
        print(reason)
    for precision, evaluations in built.evaluations.items():
        entry = manifest.precisions[precision]
        others = ", ".join(name for name in entry.schedulers if name != entry.policy)
        beside = f"; beside it {others}" if others else ""
        print(f"{precision}: {entry.policy}, suggested budget {entry.default_budget_ms} ms{beside}")
        print_evaluations(evaluations)


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return f"stopped; {args.out} is as it was; the same command builds it from the start"
