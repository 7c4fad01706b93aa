"""`eenet info`: describes a bundle."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.bundle import TOKENIZER, Bundle, TextInput, Variant, load_bundle
from profiling.calibration import load_recorded
from scheduler.fitted import load_scheduler
from scheduler.frontier import Frontier
from server.cli.options import add_json

EXAMPLE = "eenet info my-bundle"
SHOWN_CLASSES = 12
MIB = 2**20


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
        ValueError: If a scheduler or predictions cannot be read.
    """
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.folder),
        "name": manifest.name,
        "version": manifest.version,
        "task": manifest.task,
        "classes": list(manifest.classes),
        "input": _input(bundle),
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "precisions": {name: _variant(bundle.variant(name)) for name in bundle.precisions},
        "trained": None if manifest.trained is None else manifest.trained.model_dump(mode="json"),
        "torch_weights": manifest.network is not None,
        "training": manifest.training,
    }


def _variant(variant: Variant) -> dict[str, Any]:
    """Describe one precision."""
    entry = variant.entry
    frontiers = {
        name: load_scheduler(variant.scheduler(name)).frontier for name in entry.schedulers
    }
    frontier, budget_ms = frontiers[entry.policy], entry.default_budget_ms
    # The suggested budget was chosen at these costs.
    costs_ms, accuracy = frontier.costs_ms.tolist(), _test_accuracy(variant.predictions).tolist()
    return {
        "exits": [
            {
                "exit": exit,
                "cost_ms": round(cost_ms, 4),
                "test_accuracy": round(share, 4),
                "bytes": variant.exit_bytes(exit),
            }
            for exit, (cost_ms, share) in enumerate(zip(costs_ms, accuracy, strict=True))
        ],
        "schedulers": list(entry.schedulers),
        "policy": entry.policy,
        "default_budget_ms": entry.default_budget_ms,
        "at_default_budget": None if budget_ms is None else _expectations(frontier, budget_ms),
        "expected": {
            name: _expectations(each, costs_ms[-1] if budget_ms is None else budget_ms)
            for name, each in frontiers.items()
        },
        "row_independent": entry.row_independent,
        "method": entry.method,
    }


def _expectations(frontier: Frontier, budget_ms: float) -> dict[str, Any]:
    """What a frontier expects at a budget: fitted without labels it knows the agreement alone."""
    point = frontier.at_cost(budget_ms)
    known = "expected_accuracy" if frontier.reference == "labels" else "expected_agreement"
    return {
        known: round(point.expected_accuracy, 4),
        "expected_cost_ms": round(point.expected_cost_ms, 4),
        "exit_rates": point.exit_rates.round(4).tolist(),
    }


def _test_accuracy(path: Path) -> NDArray[np.float64]:
    """Accuracy of every exit on the recorded test rows, (K,)."""
    try:
        accuracy: NDArray[np.float64] = load_recorded(path).test.correct.mean(0)
    except (EOFError, KeyError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); build the bundle again") from error
    return accuracy


def _input(bundle: Bundle) -> dict[str, Any]:
    settings = bundle.manifest.input
    if not isinstance(settings, TextInput):
        return {"kind": "image", "height": settings.height, "width": settings.width}
    path = bundle.folder / TOKENIZER
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{path} is not a tokenizer ({error}); build the bundle again") from error
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
        ("size", f"{info['bytes'] / MIB:.1f} MiB"),
    ):
        yield f"{name:10} {value}"
    for precision, variant in info["precisions"].items():
        budget = _budget_line(variant["default_budget_ms"], variant["at_default_budget"])
        yield f"{precision:10} {_schedulers(variant)}; {budget}"
    yield from _expected_by_scheduler(info["precisions"])
    yield "precision   exit   cost ms   test accuracy %      MiB   exit rate at that budget"
    for precision, variant in info["precisions"].items():
        rates = (variant["at_default_budget"] or {}).get("exit_rates")
        for each in variant["exits"]:
            rate = "" if rates is None else f"{rates[each['exit']]:12.3f}"
            yield (
                f"{precision:10} {each['exit']:5d} {each['cost_ms']:9.3f} "
                f"{100 * each['test_accuracy']:17.2f} {each['bytes'] / MIB:8.2f} {rate}"
            ).rstrip()


def _expected_by_scheduler(precisions: Mapping[str, Any]) -> Iterator[str]:
    """A table of all schedulers at the suggested budget."""
    names = [name for variant in precisions.values() for name in variant["expected"]]
    width = max(map(len, ["scheduler", *names]))
    yield f"precision   {'scheduler':{width}}   cost ms   answers expected at the suggested budget"
    for precision, variant in precisions.items():
        for name, expected in variant["expected"].items():
            rates = " ".join(f"{rate:.2f}" for rate in expected["exit_rates"])
            yield (
                f"{precision:11} {name:{width}} {expected['expected_cost_ms']:9.3f}   "
                f"{_share(expected)}, exit rates {rates}"
            )


def _share(expected: Mapping[str, Any]) -> str:
    if "expected_agreement" in expected:
        return f"{100 * expected['expected_agreement']:.2f} % as the last exit"
    return f"{100 * expected['expected_accuracy']:.2f} % right"


def _schedulers(variant: dict[str, Any]) -> str:
    """The policy that a server starts with, and the others that are fitted."""
    others = [name for name in variant["schedulers"] if name != variant["policy"]]
    return f"{variant['policy']} (also {', '.join(others)})" if others else f"{variant['policy']}"


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
        return "no budget is suggested"
    if "expected_agreement" in point:
        expected = f"agreement with the last exit {100 * point['expected_agreement']:.2f} %"
    else:
        expected = f"accuracy {100 * point['expected_accuracy']:.2f} %"
    return f"suggested budget {default_ms:g} ms: {expected}"
