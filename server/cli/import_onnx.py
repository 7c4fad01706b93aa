"""`eenet import --onnx`: turns a multi-exit classifier in ONNX files into a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.cli.options import data_of
from server.cli.progress import StepLog

if TYPE_CHECKING:
    from models.data.dataset import DataConfig
    from server.pipeline.onnx_import import ImportReport, OnnxOptions


def add_onnx_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ONNX files that `import` and `attach` share."""
    parser.add_argument(
        "--preprocessing",
        type=Path,
        metavar="FILE",
        help="for --onnx: JSON of how images or texts are prepared (docs/own-models.md), a "
        "preprocessor_config.json or tokenizer.json of Hugging Face, or the folder of one "
        "(default: what lies beside the model, for images else ImageNet's normalisation)",
    )
    parser.add_argument(
        "--class-names",
        help="the classes in the network's own order, NAME,NAME,... (default: the dataset's order)",
    )


def onnx_options(args: argparse.Namespace) -> OnnxOptions:
    """The options that the flags describe.

    Raises:
        ValueError: If the dataset or the folder of the run is not given.
    """
    from server.pipeline.onnx_import import OnnxOptions

    if args.dataset is None or args.out is None:
        kind = "--onnx" if args.onnx is not None else "--triton"
        raise ValueError(f"{kind} needs --dataset, to check and calibrate on, and --out")
    if args.image_size is not None:
        raise ValueError(
            f"--image-size is {args.image_size}; the size of the images is the network's own, or "
            f"the size of --preprocessing; leave it out"
        )
    names = None if args.class_names is None else args.class_names.split(",")
    classes = None if names is None else tuple(name.strip() for name in names)
    return OnnxOptions(args.preprocessing, held_out_data(args), classes, args.out)


def held_out_data(args: argparse.Namespace) -> DataConfig:
    """The dataset; calibration rows are test rows, which the network has not been trained on."""
    return data_of(args, calibration_from="test", seed=getattr(args, "seed", None) or 0)


def run_import(args: argparse.Namespace) -> dict[str, Any]:
    """Import the files of --onnx and print what they reach.

    Raises:
        ValueError: If they are no classifier with exits, or do not fit the dataset.
    """
    from server.pipeline.onnx_import import import_file, import_folders

    options = onnx_options(args)
    paths = [Path(path) for path in args.onnx]
    if len(paths) == 1 and paths[0].is_dir():
        paths = [paths[0] / "stages", paths[0] / "heads"]
    if len(paths) > 2 or (len(paths) == 2 and not all(path.is_dir() for path in paths)):
        raise ValueError(
            f"--onnx is {', '.join(map(str, paths))}; give one file, or a folder of stages and a "
            f"folder of heads"
        )
    if len(paths) == 2:
        report = import_folders(paths[0], paths[1], options, StepLog())
    else:
        report = import_file(paths[0], options, StepLog())
    return print_imported(args.out, report)


def print_imported(out: Path, report: ImportReport) -> dict[str, Any]:
    """Print the exits of an imported network; return the document of --json."""
    print(
        f"{out}: {len(report.exits)} exits; the outputs are {report.scale.value}; stages and file "
        f"differ by {report.disagreement:.1e} in a probability at most"
    )
    print("exit   test accuracy %   output")
    for exit, (name, share) in enumerate(zip(report.exits, report.test_accuracy, strict=True)):
        print(f"{exit:4d} {100 * share:17.2f}   {name}")
    print_order(report.order)
    print(f"build it with eenet build {out} --out BUNDLE")
    return {**report._asdict(), "scale": report.scale.name.lower(), "run": str(out)}


def print_order(order: tuple[str, ...] | None) -> None:
    """Warn of classes that seem to stand in another order."""
    if order is not None:
        print(
            f"WARNING: the answers follow another order of classes; give "
            f"--class-names {','.join(order)}"
        )
