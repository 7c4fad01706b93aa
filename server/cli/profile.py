"""`eenet profile`: what each exit costs on this machine."""

import argparse
import json
from pathlib import Path
from typing import Any

from models.bundle import load_bundle, rewrite_manifest
from profiling.latency import PERCENTILES, LatencyProfile, measure_latency, save_profile
from server.cli.options import command, log_step
from server.loading import open_backend
from server.settings import Settings

MAX_PIXELS = 50_000_000
CPU_SIZES, DEVICE_SIZES = (1, 2, 4, 8), (1, 2, 4, 8, 16, 32, 64)


def add_profile(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "profile",
        "Measure the latency to each exit on this machine and write it into the bundle.",
        "eenet profile my-bundle --batch-sizes 1,4,16",
        _profile,
    )
    parser.add_argument("folder", type=Path, metavar="BUNDLE")
    fields = Settings.model_fields
    parser.add_argument(
        "--backend", default="onnx", help="what runs the network: onnx or torch (default: onnx)"
    )
    for name in ("device", "torch_mode"):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=fields[name].default,
            help=f"{fields[name].description} (default: {fields[name].default})",
        )
    parser.add_argument(
        "--batch-sizes",
        type=_sizes,
        metavar="N,N,...",
        help="rows at a time (default: 1,2,4,8; up to 64 on other devices than a CPU)",
    )
    parser.add_argument(
        "--repeats", type=int, default=200, help="rounds of each size (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the profile as JSON, last")


def _profile(args: argparse.Namespace) -> None:
    if args.repeats < 1:
        raise ValueError(f"--repeats is {args.repeats}; give 1 or more")
    if args.backend == "replay":
        raise ValueError("the replay backend takes what a table says; profile onnx or torch")
    bundle = load_bundle(args.folder)
    settings = Settings(
        bundle=(args.folder,),
        backend=args.backend,
        device=args.device,
        torch_mode=args.torch_mode,
    )
    backend = open_backend(bundle, settings)
    sizes = args.batch_sizes or (CPU_SIZES if backend.device == "cpu" else DEVICE_SIZES)
    log_step(f"measuring batches of {', '.join(map(str, sizes))} on {backend.device}")
    example = bundle.preprocessor(MAX_PIXELS).example
    profile = measure_latency(backend, example, batch_sizes=sizes, repeats=args.repeats)
    save_profile(profile, args.folder / "profile.json")
    rewrite_manifest(bundle)
    _print(profile)
    if args.json:
        print(json.dumps(profile.to_json()))


def _print(profile: LatencyProfile) -> None:
    """Milliseconds of every stage with its head; then the lines through the medians."""
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
            f"{text!r} is no list of sizes such as 1,4,16; 1 is needed"
        )
    return sizes
