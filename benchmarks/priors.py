"""What `--prior uniform` regains where calibration is imbalanced and the served samples are not.

    .venv/bin/python -m benchmarks.priors [BUNDLE | NAME:COSTS FILE.npz ...]

Groups as in benchmarks.policy_bars; without any, the shipped image bundle. Of the calibration rows
a sample is drawn whose classes are up to 20 to 1 apart, and a balanced one of as many rows. A
policy is fitted to the balanced sample, to the imbalanced one as it is, and to the imbalanced one
with a uniform prior. On the test rows, whose classes are about balanced, it prints by how much
each overspends its budgets, and the accuracy that it loses to the balanced fit at the same cost.
Means over draws and budgets. JSON on the last line.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.combined_answers import curve_of
from benchmarks.harness import BUNDLES, make_parser, print_report
from benchmarks.policy_bars import asked_groups
from profiling.calibration import Predictions
from profiling.evaluation.evaluate import evaluate, spread_budgets
from scheduler.fitting.fit import fit_scheduler
from scheduler.fitting.prior import Prior
from server.cli.evaluate import Subject

RATIO = 20.0  # rows of the most frequent class for each of the rarest
POLICIES = ("stopping", "maxprob-opt")
DRAWS, NUM_BUDGETS, TIGHT = 5, 10, 5
FITS = ("balanced", "observed", "uniform")


def main() -> int:
    """Measure all groups."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "groups", nargs="*", metavar="BUNDLE|NAME:COSTS|FILE.npz", help="what to measure"
    )
    parser.add_argument(
        "--ratio", type=float, default=RATIO, help="most to fewest rows (%(default)g)"
    )
    args = parser.parse_args()
    shipped = [] if args.smoke else [str(BUNDLES["image"])]
    report = []
    for name, subjects in asked_groups(args.groups or shipped).items():
        for subject in subjects:
            print(f"{name} {subject.name}: overspent %, worst; points lost, tighter half and all")
            draws = range(1 if args.smoke else DRAWS)
            measured = [figures_of(subject, args.ratio, seed) for seed in draws]
            figures = mean_of(measured)
            for (policy, fit), each in figures.items():
                print(
                    f"  {policy:12} {fit:9} {each[0]:+6.2f} {each[1]:+6.2f}   {each[2]:+6.2f} "
                    f"{each[3]:+6.2f}",
                    flush=True,
                )
            rows = {f"{policy} {fit}": list(each) for (policy, fit), each in figures.items()}
            report.append({"group": name, "file": subject.name, "figures": rows})
    print_report({"ratio": args.ratio, "files": report}, smoke=args.smoke)
    return 0


Figures = dict[tuple[str, str], NDArray[np.float64]]
"""By policy and fit: overspending in %, mean and worst; points lost, tighter half and all."""


def figures_of(subject: Subject, ratio: float, seed: int) -> Figures:
    """Measure each policy and fit on one draw."""
    rows, costs_ms = subject.recorded.calibration, subject.costs_ms
    rng = np.random.default_rng(seed)
    num_classes = rows.log_probs.shape[-1]
    shares = rng.permutation(ratio ** -np.linspace(0, 1, num_classes))
    skewed = draw(rows, shares, rng)
    balanced = draw(rows, np.ones(num_classes), rng, most=len(skewed.labels))
    weights = Prior.uniform([str(each) for each in range(num_classes)]).row_weights(skewed.labels)
    fits = {"balanced": (balanced, None), "observed": (skewed, None), "uniform": (skewed, weights)}
    budgets, test = spread_budgets(costs_ms, NUM_BUDGETS), subject.recorded.test
    found: Figures = {}
    for policy in POLICIES:
        schedulers = {
            fit: fit_scheduler(policy, *part, costs_ms, weighted)
            for fit, (part, weighted) in fits.items()
        }
        reference = curve_of(schedulers["balanced"], test)
        for fit, scheduler in schedulers.items():
            results = evaluate(scheduler, subject.recorded, budgets)
            spent = np.array([100 * (each.test_cost / each.budget - 1) for each in results])
            lost = [
                100 * (float(reference.at(each.test_cost).mean()) - each.test_accuracy)
                for each in results
            ]
            found[policy, fit] = np.array(
                [spent.mean(), spent.max(), np.mean(lost[:TIGHT]), np.mean(lost)]
            )
    return found


def draw(
    rows: Predictions,
    shares: NDArray[np.float64],
    rng: np.random.Generator,
    most: int | None = None,
) -> Predictions:
    """Draw as many rows as there are, or `most`, of classes in these shares (C,)."""
    members = [rng.permutation(np.flatnonzero(rows.labels == each)) for each in range(len(shares))]
    scale = min(len(each) / share for each, share in zip(members, shares, strict=True))
    if most is not None:
        scale = min(scale, most / shares.sum())
    counts = np.maximum(np.floor(scale * shares), 1).astype(int)
    chosen = np.concatenate([each[:n] for each, n in zip(members, counts, strict=True)])
    return Predictions(rows.log_probs[:, chosen], rows.labels[chosen])


def mean_of(measured: Sequence[Figures]) -> dict[tuple[str, str], Any]:
    """Mean over the draws."""
    return {key: np.mean([each[key] for each in measured], 0) for key in measured[0]}


if __name__ == "__main__":
    sys.exit(main())
