"""Which policy wins, and by how much: several networks and seeds, five budgets each.

    .venv/bin/python -m benchmarks.policy_bars BUNDLE digits:1,2,3.3,5 digits0.npz digits1.npz ...

NAME:COSTS opens a group of files of `eenet evaluate --predictions`; a bundle is a group of its own.
Prints, for each group, accuracies by budget, mean differences with
95 % bootstrap intervals (test rows of each file resampled, the same for both policies), and the
bars that a release must clear; ends with status 1 if one is missed. One JSON document last.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from profiling.evaluation.evaluate import compare, spread_budgets
from server.cli.evaluate import Subject, subject_of

POLICIES = ("maxprob", "eenet", "stopping", "maxprob-opt")
NUM_BUDGETS, TIGHT = 5, 3  # the tighter half of five budgets, the middle one counted in
RESAMPLES = 1000


class Outcome(NamedTuple):
    """One file: whether each test row was right, by policy (B, M), and what it cost."""

    right: dict[str, NDArray[np.bool_]]
    accuracy: dict[str, NDArray[np.float64]]  # (B,)
    misses: list[str]


def judge(subject: Subject) -> Outcome:
    """Fit and replay; note every budget that is not kept."""
    budgets = spread_budgets(subject.costs_ms, NUM_BUDGETS)
    comparison = compare(subject.recorded, subject.costs_ms, budgets=budgets, policies=POLICIES)
    correct = subject.recorded.test.correct
    rows = np.arange(len(correct))
    right: dict[str, list[NDArray[np.bool_]]] = {policy: [] for policy in POLICIES}
    misses = []
    for (policy, budget, *_), exits in comparison.scored:
        right[policy].append(correct[rows, exits])
        costs = subject.costs_ms[exits]
        # Both means are of samples: the error of the calibration set's enters like the test set's.
        error = costs.std() * np.sqrt(1 / len(costs) + 1 / len(subject.recorded.calibration.labels))
        allowed = budget * 1.01 + 2 * error
        if costs.mean() > allowed:
            misses.append(
                f"{subject.name}: {policy} at {budget:.3f} costs {costs.mean():.4f} on the test "
                f"set, over {allowed:.4f}"
            )
    misses += [
        f"{subject.name}: {row.policy} at {row.budget:.3f} costs {row.calibration_cost:.4f} on the "
        f"calibration set"
        for row, _ in comparison.scored
        if not row.feasible
    ]
    stacked = {policy: np.stack(parts) for policy, parts in right.items()}
    return Outcome(stacked, {policy: each.mean(1) for policy, each in stacked.items()}, misses)


def difference(
    outcomes: list[Outcome], ours: str, theirs: str, budgets: slice
) -> tuple[float, float, float]:
    """Mean accuracy difference in points over files and budgets, and its 95 % interval."""
    rng, means, samples = np.random.default_rng(0), [], []
    for outcome in outcomes:
        gains = 100.0 * (
            outcome.right[ours][budgets].mean(0) - outcome.right[theirs][budgets].mean(0)
        )
        means.append(gains.mean())
        drawn = rng.multinomial(len(gains), np.full(len(gains), 1 / len(gains)), RESAMPLES)
        samples.append(drawn @ gains / len(gains))
    low, high = np.percentile(np.mean(samples, 0), [2.5, 97.5])
    return float(np.mean(means)), float(low), float(high)


def main(arguments: list[str]) -> int:
    """Judge all groups."""
    groups: dict[str, list[Subject]] = {}
    name, costs = "", np.empty(0)
    for argument in arguments:
        if Path(argument).is_dir():
            groups[argument] = [subject_of(Path(argument), None, None)]
        elif ":" in argument:
            name, _, listed = argument.partition(":")
            costs = np.array([float(cost) for cost in listed.split(",")])
        else:
            groups.setdefault(name, []).append(subject_of(None, Path(argument), costs))
    report, misses = [], []
    for name, subjects in groups.items():
        outcomes = [judge(subject._replace(fitted=None)) for subject in subjects]
        misses += [miss for outcome in outcomes for miss in outcome.misses]
        print(f"\n{name}: {', '.join(subject.name for subject in subjects)}")
        for policy in POLICIES:
            mean = np.mean([outcome.accuracy[policy] for outcome in outcomes], 0)
            print(f"  {policy:12} " + " ".join(f"{100 * share:7.2f}" for share in mean))
        group = {"group": name, "files": [subject.name for subject in subjects]}
        tight, everywhere = slice(0, TIGHT), slice(None)
        for ours, theirs, budgets, label in (
            ("stopping", "maxprob", tight, "tight"),
            ("stopping", "eenet", tight, "tight"),
            ("stopping", "eenet", everywhere, "all"),
            ("stopping", "maxprob-opt", tight, "tight"),
            ("eenet", "maxprob", everywhere, "all"),
        ):
            mean, low, high = difference(outcomes, ours, theirs, budgets)
            print(f"  {ours} - {theirs} ({label}): {mean:+.2f} [{low:+.2f}, {high:+.2f}]")
            group[f"{ours} - {theirs} ({label})"] = [mean, low, high]
        worst = min(
            float((outcome.accuracy["stopping"] - outcome.accuracy["eenet"]).min())
            for outcome in outcomes
        )
        print(f"  stopping - eenet, worst budget of any file: {100 * worst:+.2f}")
        group["worst"] = 100 * worst
        if worst < -0.003:
            misses.append(f"{name}: stopping is {-100 * worst:.2f} points below eenet somewhere")
        if group["stopping - maxprob (tight)"][0] <= 0:
            misses.append(f"{name}: stopping does not beat maxprob where budgets are tight")
        if group["eenet - maxprob (all)"][0] < -0.2:
            misses.append(f"{name}: eenet is more than 0.2 points below maxprob")
        report.append(group)
    print("\n" + ("\n".join(misses) or "every bar is cleared"))
    print(json.dumps({"groups": report, "misses": misses}))
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
