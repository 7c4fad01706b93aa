"""Accuracy of a cascade at equal cost, against its networks and simpler cascades of them.

    .venv/bin/python -m benchmarks.cascades CASCADE [CASCADE ...]

Replays the recorded test predictions of bundles of `eenet cascade`. Costs are those of its profile.
JSON on the last line.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import REPO, make_parser, print_report
from models.bundle import load_bundle
from models.stage_costs import read_stage_costs
from profiling.calibration import Predictions, Recorded, load_recorded
from profiling.evaluation.evaluate import compare

SHARES = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)  # of the way from the first network's cost to all
SMOKE = REPO / "models/zoo/ag-news-minilm"
Array = NDArray[np.float64]


def main() -> None:
    """Print a table for each cascade, and the JSON."""
    parser = make_parser(__doc__)
    parser.add_argument("folders", nargs="*", type=Path, metavar="CASCADE")
    args = parser.parse_args()
    if args.smoke:
        report = [measure("smoke", *_smoke())]
    else:
        if not args.folders:
            parser.error("name a bundle of `eenet cascade`")
        report = [measure(folder.name, *_read(folder)) for folder in args.folders]
    print_report({"cascades": report}, smoke=args.smoke)


def _read(folder: Path) -> tuple[Recorded, Array, int]:
    """Return predictions, costs until each exit, and the first exit of the second network."""
    bundle = load_bundle(folder)
    if len(bundle.manifest.cascade) != 2:
        raise SystemExit(f"{folder} is no cascade of two networks")
    variant = bundle.variant()
    costs_ms = read_stage_costs(variant.profile).costs_ms
    return load_recorded(variant.predictions), costs_ms, bundle.manifest.cascade[1].first_stage


def _smoke() -> tuple[Recorded, Array, int]:
    """Take two exits of a network for a small network, and few rows of the others."""
    recorded = load_recorded(load_bundle(SMOKE).variant().predictions)

    def few(rows: Predictions) -> Predictions:
        return Predictions(rows.log_probs[:, :300], rows.labels[:300])

    return (
        Recorded(few(recorded.calibration), None, few(recorded.test)),
        np.array([1.0, 2.0, 3.0, 4.0]),
        2,
    )


def measure(name: str, recorded: Recorded, costs_ms: Array, second: int) -> dict[str, Any]:
    """Compare one cascade with its networks, each alone, and with a threshold between them."""
    exits = list(range(len(costs_ms)))
    own_ms = np.diff(costs_ms, prepend=0.0)
    alone_ms = np.cumsum(own_ms[second:])  # of the second network
    start, end = float(costs_ms[second - 1]), float(costs_ms[-1])
    budgets = [start + share * (end - start) for share in SHARES]
    subjects: dict[str, tuple[list[int], Array, str]] = {
        "cascade": (exits, costs_ms, "stopping"),
        "first network": (exits[:second], costs_ms[:second], "stopping"),
        "second network": (exits[second:], alone_ms, "stopping"),
        "confidence cascade": ([second - 1, exits[-1]], costs_ms[[second - 1, -1]], "maxprob"),
    }
    accuracy = {
        subject: accuracies(_some(recorded, kept), costs, budgets, policy)
        for subject, (kept, costs, policy) in subjects.items()
    }
    agreement = agreement_cascade(recorded.test, costs_ms)
    print(f"\n{name}: costs {costs_ms.round(3).tolist()} ms, second network from exit {second}")
    print("budget ms   " + "   ".join(f"{subject:>18}" for subject in subjects))
    for place, budget in enumerate(budgets):
        cells = [_percent(accuracy[subject][place]) for subject in subjects]
        print(f"{budget:9.3f}   " + "   ".join(f"{cell:>18}" for cell in cells))
    print(
        f"agreement of two exits: {_percent(agreement['accuracy'])} % at "
        f"{agreement['cost_ms']:.3f} ms, the cascade there "
        f"{_percent(_at(recorded, costs_ms, agreement['cost_ms']))} %"
    )
    return {
        "name": name,
        "costs_ms": costs_ms.tolist(),
        "budgets_ms": budgets,
        "accuracy": accuracy,
        "agreement": agreement,
    }


def accuracies(
    recorded: Recorded, costs_ms: Array, budgets: Sequence[float], policy: str
) -> list[float | None]:
    """Return the test accuracy of a policy at each mean cost; None below the first exit's."""
    if len(costs_ms) == 1:
        share = float(recorded.test.correct.mean())
        return [share if budget >= costs_ms[0] else None for budget in budgets]
    reachable = [min(budget, float(costs_ms[-1])) for budget in budgets if budget >= costs_ms[0]]
    if not reachable:
        return [None] * len(budgets)
    distinct = sorted(set(reachable))
    compared = compare(recorded, costs_ms, budgets=distinct, policies=[policy])
    (rows,) = compared.by_policy.values()
    found = {row.budget: row.test_accuracy for row in rows}
    best = [found[budget] for budget in reachable]
    return [None] * (len(budgets) - len(best)) + best


def agreement_cascade(test: Predictions, costs_ms: Array) -> dict[str, float]:
    """Answer as soon as an exit agrees with the one before it, else at the last."""
    answers = test.log_probs.argmax(-1)  # (K, N)
    agrees = np.vstack([np.zeros(answers.shape[1], bool), answers[1:] == answers[:-1]])
    agrees[-1] = True
    exits = agrees.argmax(0)
    right = answers[exits, np.arange(answers.shape[1])] == test.labels
    return {"accuracy": float(right.mean()), "cost_ms": float(costs_ms[exits].mean())}


def _at(recorded: Recorded, costs_ms: Array, budget: float) -> float | None:
    return accuracies(recorded, costs_ms, [budget], "stopping")[0]


def _some(recorded: Recorded, exits: list[int]) -> Recorded:
    def some(rows: Predictions) -> Predictions:
        return Predictions(rows.log_probs[exits], rows.labels)

    return Recorded(some(recorded.calibration), None, some(recorded.test))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


if __name__ == "__main__":
    main()
