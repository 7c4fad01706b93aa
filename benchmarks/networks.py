"""Accuracy of several bundles at equal latency, measured in turns within one run.

    .venv/bin/python -m benchmarks.networks PLAIN_BUNDLE BUNDLE[:PRECISION]...

Budgets are shares of the first bundle's whole latency on this machine. Without a precision, a
bundle's first is measured. JSON on the last line.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import IMAGE_BUNDLE, MAX_PIXELS, make_parser, print_report
from models.bundle import BundleError, Precision, Variant, load_bundle
from models.runtime.onnx_backend import OnnxBackend
from profiling.calibration import Recorded, load_recorded
from profiling.evaluation.evaluate import evaluate
from profiling.latency import measure_latency
from scheduler.fitted import load_scheduler

TURNS, REPEATS = 12, 50
SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)


def main() -> None:
    """Print the latency until each exit, and a table of accuracies at equal latency."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "bundles",
        nargs="*",
        type=named_variant,
        metavar="BUNDLE[:PRECISION]",
        help="plain one first",
    )
    args = parser.parse_args()
    if not args.bundles and not args.smoke:
        parser.error("give the plain bundle and those to compare it with")
    variants: list[Variant] = args.bundles or [load_bundle(IMAGE_BUNDLE).variant()]
    costs_ms = measure_in_turns(variants, *((1, 3) if args.smoke else (TURNS, REPEATS)))
    whole_ms = float(costs_ms[0][-1])
    rows = [
        compare(variant, costs, whole_ms) for variant, costs in zip(variants, costs_ms, strict=True)
    ]
    print(f"latency until each exit as a share of {whole_ms:.3f} ms, accuracy in %")
    for row in rows:
        print(row["bundle"], row["latency_share"], row["accuracy"])
    print("accuracy in % at a mean latency of", " ".join(f"{share:6.2f}" for share in SHARES))
    for row in rows:
        print(row["bundle"], " ".join(shown(each) for each in row["accuracy_at"]))
    print_report({"whole_ms": whole_ms, "shares": SHARES, "bundles": rows}, smoke=args.smoke)


def named_variant(text: str) -> Variant:
    """The variant that `BUNDLE:PRECISION` names, or the first of `BUNDLE`.

    Raises:
        argparse.ArgumentTypeError: If there is no such bundle, or not in this precision.
    """
    folder, colon, precision = text.rpartition(":")
    if not colon or precision not in get_args(Precision):  # a folder's name may have a colon too
        folder, precision = text, ""
    try:
        return load_bundle(Path(folder)).variant(cast("Precision | None", precision or None))
    except BundleError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def compare(variant: Variant, costs_ms: NDArray[np.float64], whole_ms: float) -> dict[str, Any]:
    """Latency and accuracy of each exit of a bundle, and its accuracies at each share."""
    recorded = load_recorded(variant.predictions)
    return {
        "bundle": f"{variant.bundle.folder}:{variant.precision}",
        "latency_share": (costs_ms / whole_ms).round(2).tolist(),
        "accuracy": (100 * recorded.test.correct.mean(0)).round(2).tolist(),
        "accuracy_at": accuracies_at(variant, recorded, costs_ms, whole_ms),
    }


def shown(accuracy: float | None) -> str:
    """A cell of the table."""
    return "     -" if accuracy is None else f"{accuracy:6.2f}"


def measure_in_turns(
    variants: Sequence[Variant], turns: int, repeats: int
) -> list[NDArray[np.float64]]:
    """Median latency in ms until each exit, one input at a time, one thread; (K,) per variant."""
    networks = [
        (
            OnnxBackend(variant.stage_files, variant.head_files),
            variant.bundle.preprocessor(MAX_PIXELS).example,
        )
        for variant in variants
    ]
    costs: list[list[NDArray[np.float64]]] = [[] for _ in variants]
    for _ in range(turns):
        for (backend, example), found in zip(networks, costs, strict=True):
            profile = measure_latency(
                backend, example, batch_sizes=(1,), warm_up=min(10, repeats), repeats=repeats
            )
            found.append(profile.costs_ms)
    return [np.median(found, axis=0) for found in costs]


def accuracies_at(
    variant: Variant, recorded: Recorded, costs_ms: NDArray[np.float64], whole_ms: float
) -> list[float | None]:
    """Test accuracy in % at each share of the first bundle's latency; None below exit 0."""
    fitted = load_scheduler(variant.scheduler())
    here = fitted._replace(frontier=fitted.frontier.with_costs(costs_ms))
    budgets = [share * whole_ms for share in SHARES]
    rows = evaluate(here, recorded, budgets)
    return [100 * row.test_accuracy if row.budget >= costs_ms[0] else None for row in rows]


if __name__ == "__main__":
    main()
