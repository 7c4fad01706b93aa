"""`eenet info`: describes a bundle."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from models.bundle import TOKENIZER, Bundle, TextInput, load_bundle
from profiling.calibration import load_recorded
from scheduler.fitted import load_scheduler
from server.cli.options import add_json

EXAMPLE = "eenet info my-bundle"
SHOWN_CLASSES = 12


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("folder", metavar="BUNDLE", type=Path, help="folder of `eenet build`")
    add_json(parser, "the description")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Print the description."""
    described = describe(load_bundle(args.folder))
    print("\n".join(_table(described)))
    return described


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return "stopped; nothing was written"


def describe(bundle: Bundle) -> dict[str, Any]:
    """Describe a verified bundle.

    Raises:
        ValueError: If its scheduler or predictions cannot be read.
    """
    manifest = bundle.manifest
    policy, frontier = load_scheduler(bundle.folder)
    costs_ms = frontier.costs_ms.tolist()  # those that the default budget was chosen at
    accuracy = load_recorded(bundle.folder / "calibration.npz").test.correct.mean(0)
    default_ms = manifest.default_budget_ms
    point = None if default_ms is None else frontier.at_cost(default_ms)
    return {
        "bundle": str(bundle.folder),
        "name": manifest.name,
        "version": manifest.version,
        "task": manifest.task,
        "classes": list(manifest.classes),
        "input": _input(bundle),
        "precision": manifest.weights,
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "exits": [
            {"exit": exit, "cost_ms": round(cost_ms, 4), "test_accuracy": round(share, 4)}
            for exit, (cost_ms, share) in enumerate(zip(costs_ms, accuracy.tolist(), strict=True))
        ],
        "policy": policy.kind,
        "default_budget_ms": default_ms,
        "at_default_budget": None
        if point is None
        else {
            "expected_accuracy": round(point.expected_accuracy, 4),
            "expected_cost_ms": round(point.expected_cost_ms, 4),
            "exit_rates": point.exit_rates.round(4).tolist(),
        },
        "measured": {
            weights: measured.model_dump(mode="json")
            for weights, measured in manifest.measured.items()
        },
        "torch_weights": manifest.network is not None,
        "training": manifest.training,
    }


def _input(bundle: Bundle) -> dict[str, Any]:
    settings = bundle.manifest.preprocessing
    if not isinstance(settings, TextInput):
        return {"kind": "image", "height": settings.height, "width": settings.width}
    tokenizer = Tokenizer.from_file(str(bundle.folder / TOKENIZER))
    return {
        "kind": "text",
        "max_tokens": settings.max_tokens,
        "typical_tokens": settings.typical_tokens,
        "vocabulary": tokenizer.get_vocab_size(),
    }


def _table(info: dict[str, Any]) -> Iterator[str]:
    """Lines for people."""
    for name, value in (
        ("name", f"{info['name']}, version {info['version']}"),
        ("task", info["task"]),
        ("classes", _classes(info["classes"])),
        ("input", _input_line(info["input"])),
        ("precision", f"{info['precision']} weights, {info['bytes'] / 2**20:.1f} MiB in all"),
        ("policy", info["policy"]),
        ("budget", _budget_line(info["default_budget_ms"], info["at_default_budget"])),
    ):
        yield f"{name:10} {value}"
    yield "exit    cost ms   test accuracy %   exit rate at the default budget"
    rates = (info["at_default_budget"] or {}).get("exit_rates")
    for each in info["exits"]:
        rate = "" if rates is None else f"{rates[each['exit']]:12.3f}"
        yield (
            f"{each['exit']:4d} {each['cost_ms']:10.3f} {100 * each['test_accuracy']:17.2f} {rate}"
        ).rstrip()


def _classes(classes: Sequence[str]) -> str:
    more = len(classes) - SHOWN_CLASSES
    names = ", ".join(classes[:SHOWN_CLASSES])
    return f"{len(classes)}: {names}" + (f" and {more} more" if more > 0 else "")


def _input_line(settings: dict[str, Any]) -> str:
    if settings["kind"] == "image":
        return f"images of {settings['width']}x{settings['height']}"
    return (
        f"texts of at most {settings['max_tokens']} tokens (median {settings['typical_tokens']}), "
        f"vocabulary of {settings['vocabulary']}"
    )


def _budget_line(default_ms: float | None, point: dict[str, Any] | None) -> str:
    if default_ms is None or point is None:
        return "none: every input runs to the last exit"
    return (
        f"{default_ms:g} ms by default: expected accuracy {100 * point['expected_accuracy']:.2f} %"
    )
