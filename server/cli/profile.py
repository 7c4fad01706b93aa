"""`eenet profile`: measures the cost of each exit on this machine."""

import argparse
from pathlib import Path
from typing import Any

from models.bundle import Precision, load_bundle, rewrite_manifest
from models.runtime.instruction_set import integer_instructions
from profiling.latency import PERCENTILES, LatencyProfile, measure_latency, save_profile
from server.cli.options import add_backend, add_json, add_precision, backend_settings
from server.cli.progress import StepLog
from server.loading import open_backend

EXAMPLE = "eenet profile my-bundle --batch-sizes 1,4,16"
MAX_PIXELS = 50_000_000
CPU_SIZES, DEVICE_SIZES = (1, 2, 4, 8), (1, 2, 4, 8, 16, 32, 64)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("folder", type=Path, metavar="BUNDLE", help="folder of `eenet build`")
    add_precision(parser)
    add_backend(parser)
    parser.add_argument(
        "--batch-sizes",
        type=_sizes,
        metavar="N,N,...",
        help="batch sizes (default: 1,2,4,8; up to 64 on other devices than a CPU)",
    )
    parser.add_argument(
        "--repeats", type=int, default=200, help="rounds per batch size (default: %(default)s)"
    )
    add_json(parser, "the profile")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, write the profile into the bundle and print it."""
    if args.repeats < 1:
        raise ValueError(f"--repeats is {args.repeats}; give 1 or more")
    settings = backend_settings(args)
    # The torch backend computes in single precision only.
    precision: Precision | None = args.precision
    if args.backend == "torch":
        precision = precision or "float32"
    variant = load_bundle(args.folder).variant(precision)
    backend = open_backend(variant, settings)
    sizes = args.batch_sizes or (CPU_SIZES if backend.device == "cpu" else DEVICE_SIZES)
    StepLog()(
        f"measuring {variant.precision} in batches of {', '.join(map(str, sizes))} on "
        f"{_described(backend.device)}"
    )
    example = variant.bundle.preprocessor(MAX_PIXELS).example
    profile = measure_latency(backend, example, batch_sizes=sizes, repeats=args.repeats)
    save_profile(profile, variant.profile)
    rewrite_manifest(variant.bundle)
    _print(profile)
    return profile.to_json()


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return f"stopped; {args.folder} keeps the profile that it had; run the same command again"


def _described(device: str) -> str:
    """Name a device, and a CPU's instructions for 8-bit products: int8 is slow without them."""
    if device != "cpu":
        return device
    return f"cpu (integer instructions: {integer_instructions()})"


def _print(profile: LatencyProfile) -> None:
    """Print the milliseconds until every exit, then the lines through the medians."""
    print("batch   exit   " + "   ".join(f"p{each} ms".rjust(8) for each in PERCENTILES))
    for rows, latency in sorted(profile.by_batch.items()):
        for exit, percentiles in enumerate(latency.exits_ms):
            print(f"{rows:5d} {exit:6d}   " + "   ".join(f"{ms:8.3f}" for ms in percentiles))
    line = profile.stage_costs.line()
    for stage, (row_ms, batch_ms) in enumerate(zip(line.row_ms, line.batch_ms, strict=True)):
        print(f"stage {stage}: {row_ms:.4g} ms a row + {batch_ms:.4g} ms a batch")


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        sizes = ()
    if not sizes or sizes[0] != 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of batch sizes such as 1,4,16; it must contain 1"
        )
    return sizes
