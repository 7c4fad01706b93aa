"""Gain of combined answers: `stopping` with and without them, at equal cost on the test rows.

    .venv/bin/python -m benchmarks.combined_answers [BUNDLE | NAME:COSTS FILE.npz ...]

Groups as in benchmarks.policy_bars; without any, the shipped bundles. The policy without combined
answers spends a budget on the test rows, and the other is read off its own curve at that cost. Mean
differences over ten budgets and over the tighter half, with 95 % bootstrap intervals of test rows.
Then the time to combine one row, and the bars; ends with status 1 if one is missed. JSON on the
last line.
"""

import sys
import time
import timeit
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import BUNDLES, make_parser, print_report
from benchmarks.policies import make_problem
from benchmarks.policy_bars import asked_groups
from profiling.calibration import Predictions
from profiling.evaluation.evaluate import spread_budgets
from scheduler.combiner import OWN_OUTPUTS, Combiner
from scheduler.fitted import Scheduler
from scheduler.fitting.combiner import FittedCombiner, fit_combiner
from scheduler.fitting.fit import fit_scheduler
from scheduler.policy import exits_taken, replay
from server.cli.evaluate import Subject

Array = NDArray[np.float64]

NUM_BUDGETS, TIGHT = 10, 5
RESAMPLES = 1000
GAINS = {"digits": 0.9, "cifar10": 0.2}  # bars, in points, of groups whose name starts so
WORST_LOSS = 0.2  # a bar on every file, in points
ONE_ROW_US = 50.0  # a bar at the slowest exit of ten classes
ONLINE_EXITS, ONLINE_CLASSES = 3, 10
REPEATS, ROUNDS = 500, 15


class Curve(NamedTuple):
    """The test rows along a frontier: mean costs (G,), rising, and whether each is right (G, M)."""

    costs_ms: Array
    right: NDArray[np.bool_]

    def at(self, cost_ms: float) -> Array:
        """The chance of each row to be right (M,) when two points alternate to spend this much."""
        above = int(np.searchsorted(self.costs_ms, cost_ms).clip(1, len(self.costs_ms) - 1))
        low, high = self.costs_ms[above - 1], self.costs_ms[above]
        share = float(np.clip((cost_ms - low) / (high - low), 0, 1))
        mixed: Array = (1 - share) * self.right[above - 1] + share * self.right[above]
        return mixed


class Gain(NamedTuple):
    """A difference of accuracies in points, and its 95 % interval."""

    mean: float
    low: float
    high: float


def curve_of(scheduler: Scheduler, test: Predictions) -> Curve:
    """Replay every point of a frontier that spends more test time than all before it."""
    policy, frontier, combiner = scheduler
    test = test.combined(combiner)
    replayed, correct = replay(policy, test.log_probs), test.correct == 1
    costs, rights, rows = [0.0], [], np.arange(len(correct))
    for parameter in frontier.parameters.tolist():
        exits = exits_taken(policy, replayed, parameter)
        if (cost := float(frontier.costs_ms[exits].mean())) > costs[-1]:
            costs.append(cost)
            rights.append(correct[rows, exits])
    return Curve(np.array(costs[1:]), np.stack(rights))


def gains_of(subject: Subject) -> tuple[Array, Combiner, float]:
    """Gain of each row at each budget (B, M), the combiner, and the seconds that its fit took."""
    costs_ms, (calibration, _, test) = subject.costs_ms, subject.recorded
    own = FittedCombiner(OWN_OUTPUTS, calibration.log_probs)
    plain = fit_scheduler("stopping", *calibration, costs_ms, combined=own)
    started = time.perf_counter()
    combined = fit_combiner(*calibration, seed=0)
    seconds = time.perf_counter() - started
    ours = fit_scheduler("stopping", *calibration, costs_ms, combined=combined)
    curve, correct = curve_of(ours, test), test.correct
    replayed, gains = replay(plain.policy, test.log_probs), []
    for budget in spread_budgets(costs_ms, NUM_BUDGETS):
        exits = exits_taken(plain.policy, replayed, plain.frontier.at_cost(budget).parameter)
        right = correct[np.arange(len(exits)), exits]
        gains.append(curve.at(float(costs_ms[exits].mean())) - right)
    return 100 * np.stack(gains), combined.combiner, seconds


def with_interval(gains: Array) -> Gain:
    """Mean of the gains of rows (M,), which are resampled."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(gains), np.full(len(gains), 1 / len(gains)), RESAMPLES)
    low, high = np.percentile(drawn @ gains / len(gains), [2.5, 97.5]).tolist()
    return Gain(float(gains.mean()), low, high)


def form_of(weights: Array | None, exit: int) -> str:
    """The form of an exit's combination, in words."""
    if weights is None:
        return "none"
    if weights.ndim == 1:
        return "powers " + " ".join(f"{power:.2f}" for power in weights)
    rows, num_classes = weights.shape
    products = rows > 1 + 2 * (exit + 1) * num_classes
    return "stacked on log p, p" + (", products" if products else "")


def judge_group(name: str, subjects: list[Subject]) -> tuple[dict[str, Any], list[str]]:
    """Measure the files of a group; the figures, and the bars that were missed."""
    report, misses = {}, []
    for subject in subjects:
        gains, combiner, seconds = gains_of(subject)
        tight, every = with_interval(gains[:TIGHT].mean(0)), with_interval(gains.mean(0))
        forms = [form_of(weights, exit) for exit, weights in enumerate(combiner.weights)]
        print(
            f"{name} {subject.name}: tight {tight.mean:+.2f} [{tight.low:+.2f}, {tight.high:+.2f}] "
            f"all {every.mean:+.2f} [{every.low:+.2f}, {every.high:+.2f}] points; fitted in "
            f"{seconds:.1f} s: {'; '.join(forms) or 'none'}",
            flush=True,
        )
        by_budget = gains.mean(1).tolist()
        report[subject.name] = {"tight": tight, "all": every, "by_budget": by_budget}
        report[subject.name] |= {"fit_seconds": seconds, "forms": forms}
        misses += [
            f"{subject.name}: combined answers lose {-each.mean:.2f} points"
            for each in (tight, every)
            if each.mean < -WORST_LOSS
        ]
    mean = float(np.mean([figures["tight"].mean for figures in report.values()]))
    bars = [bar for start, bar in GAINS.items() if Path(name).name.startswith(start)]
    misses += [f"{name}: gains {mean:.2f} of {bar} points" for bar in bars if mean < bar]
    return {"group": name, "tight": mean, "files": report}, misses


def online_us(rows: int) -> list[float]:
    """Microseconds to combine rows at each exit, stacked on all inputs, best of rounds."""
    rng = np.random.default_rng(0)
    products = ONLINE_CLASSES * (ONLINE_CLASSES + 1) // 2
    inputs = [1 + 2 * (k + 1) * ONLINE_CLASSES + products for k in range(ONLINE_EXITS)]
    shapes = [(rows, ONLINE_CLASSES) for rows in inputs]
    combiner = Combiner(tuple(0.1 * rng.normal(size=shape) for shape in shapes))
    outputs, _ = make_problem(ONLINE_EXITS, rows, ONLINE_CLASSES)
    memory, found = combiner.start(rows), []
    for exit, log_probs in enumerate(outputs):

        def at_this_exit(k: int = exit, x: Array = log_probs, before: Array = memory) -> None:
            combiner.combine(k, x, combiner.remember(k, x, before))

        seconds = min(timeit.repeat(at_this_exit, repeat=ROUNDS, number=REPEATS)) / REPEATS
        found.append(seconds * 1e6)
        memory = combiner.remember(exit, log_probs, memory)
    return found


def main() -> int:
    """Judge all groups and time the online form."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "groups", nargs="*", metavar="BUNDLE|NAME:COSTS|FILE.npz", help="what to judge"
    )
    args = parser.parse_args()
    shipped = [] if args.smoke else [str(folder) for folder in BUNDLES.values()]
    groups = asked_groups(args.groups or shipped)
    report, misses = [], []
    for name, subjects in groups.items():
        figures, missed = judge_group(name, subjects)
        report.append(figures)
        misses += missed
    online = {str(rows): online_us(rows) for rows in (1, 64)}
    for rows, times in online.items():
        print(f"{rows} rows at each exit: {', '.join(f'{each:.1f}' for each in times)} us")
    if (slowest := max(online["1"])) > ONE_ROW_US:
        misses.append(f"one row takes {slowest:.1f} us, over {ONE_ROW_US:g}")
    print("\n".join(misses) or "every bar is cleared")
    print_report({"groups": report, "online_us": online, "misses": misses}, smoke=args.smoke)
    return 1 if misses and not args.smoke else 0


if __name__ == "__main__":
    sys.exit(main())
