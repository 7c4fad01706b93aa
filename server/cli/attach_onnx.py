"""`eenet attach --onnx`: puts exits onto a classifier that comes as an ONNX file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.cli.import_onnx import onnx_options, print_order
from server.cli.options import parse_exits
from server.cli.progress import StepLog
from server.cli.train import train_config

if TYPE_CHECKING:
    from server.pipeline.onnx_attach import AttachReport, CutPoints

# Training of small heads on cached features; the network's own answers count half.
HEADS = {
    "optimizer": "adamw",
    "peak_lr": 2e-3,
    "weight_decay": 0.01,
    "distill_weight": 0.5,
    "batch_size": 128,
}


def run_attach(args: argparse.Namespace) -> dict[str, Any]:
    """Choose exits or train their heads; print the figures of each exit.

    Without a dataset it only lists and chooses the places of exits.

    Raises:
        ValueError: If the file is no classifier, cannot be cut, or does not fit the dataset.
    """
    from server.pipeline.onnx_attach import attach_exits, choose, find_cut_points

    if args.compile:
        raise ValueError("--compile trains torch networks; leave it out with --onnx")
    options = None if args.dataset is None and args.out is None else onnx_options(args)
    training = train_config(args, HEADS)
    step = StepLog()
    step(f"cutting {args.onnx}")
    points = find_cut_points(Path(args.onnx), args.preprocessing, args.output)
    exits = (
        choose(points, args.num_exits, args.budget_ms)
        if args.exits is None
        else [number for number in parse_exits(args.exits) if number != len(points.tensors) + 1]
    )
    if args.exits is None:
        print_places(points, exits)
    if options is None:
        return {"places": points.tensors, "ends_ms": points.ends_ms.tolist(), "exits": list(exits)}
    report = attach_exits(points, exits, training, options, step)
    return print_attached(args.out, report)


def print_places(points: CutPoints, exits: Sequence[int]) -> None:
    """Print the places of a network, and which become exits."""
    print("place: ms until it, tensor")
    for place, (name, ms) in enumerate(
        zip([*points.tensors, "the end"], points.ends_ms, strict=True), start=1
    ):
        print(f"{place:5d}: {ms:8.3f}  {name}{'  exit' if place in exits else ''}")
    print(f"exits: --exits {','.join(map(str, exits))}, and the network's own at the end")


def print_attached(out: Path, report: AttachReport) -> dict[str, Any]:
    """Print the exits of a network; return the document of --json."""
    print(
        f"{out}: {len(report.test_accuracy)} exits; the output is {report.scale.value}; stages and "
        f"file differ by {report.disagreement:.1e} in a probability at most"
    )
    print("exit   test accuracy %   answers as the network %   share of its cost   reads")
    rows = zip(
        report.test_accuracy,
        report.agreement,
        report.cost_share,
        [*report.tensors, "the network's own exit"],
        strict=True,
    )
    for exit, (accuracy, agreement, cost, name) in enumerate(rows):
        print(f"{exit:4d} {100 * accuracy:17.2f} {100 * agreement:26.2f} {cost:19.2f}   {name}")
    if report.weakness is not None:
        print(report.weakness)
    print_order(report.order)
    print(f"build it with eenet build {out} --out BUNDLE")
    return {
        **report._asdict(),
        "scale": report.scale.name.lower(),
        "weakness": report.weakness,
        "run": str(out),
    }
