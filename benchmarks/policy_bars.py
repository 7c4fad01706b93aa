"""Exit policies compared: several networks and seeds, five budgets each, and their bars.

    .venv/bin/python -m benchmarks.policy_bars BUNDLE digits:1,2,3.3,5 digits0.npz digits1.npz ...

NAME:COSTS opens a group of files of `eenet evaluate --predictions`; a bundle is a group of its own.
Prints accuracies by budget for each group, mean differences with 95 % bootstrap intervals (test
rows of each file resampled, the same for both policies), and the bars that a release must clear;
ends with status 1 if one is missed. JSON on the last line.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import make_parser, print_report
from benchmarks.policies import make_problem
from profiling.evaluation.evaluate import compare, spread_budgets
from server.cli.evaluate import Subject, subject_of

POLICIES = ("maxprob", "eenet", "stopping", "maxprob-opt")
NUM_BUDGETS, TIGHT = 5, 3  # the tighter half of five budgets, the middle one counted in
RESAMPLES = 1000
COMPARISONS = (
    ("stopping", "maxprob", slice(0, TIGHT), "tight"),
    ("stopping", "eenet", slice(0, TIGHT), "tight"),
    ("stopping", "eenet", slice(None), "all"),
    ("stopping", "maxprob-opt", slice(0, TIGHT), "tight"),
    ("eenet", "maxprob", slice(None), "all"),
)
WORST_LOSS, EENET_LOSS = 0.003, 0.2  # the bars: a share at one budget, points on average


class Outcome(NamedTuple):
    """One file: whether each test row was right (B, M), accuracies (B,), missed budgets."""

    right: dict[str, NDArray[np.float64]]
    accuracy: dict[str, NDArray[np.float64]]
    misses: list[str]


def judge(subject: Subject) -> Outcome:
    """Fit and replay every policy; note every budget that is not kept."""
    budgets = spread_budgets(subject.costs_ms, NUM_BUDGETS)
    comparison = compare(subject.recorded, subject.costs_ms, budgets=budgets, policies=POLICIES)
    labels = subject.recorded.test.labels
    right: dict[str, list[NDArray[np.float64]]] = {policy: [] for policy in POLICIES}
    misses = []
    for (policy, budget, *_), exits, answers in comparison.scored:
        right[policy].append((answers == labels).astype(np.float64))
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
        for row, *_ in comparison.scored
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


def asked_groups(names: list[str]) -> dict[str, list[Subject]]:
    """Read the groups that were asked for; without any, one that is made up."""
    if names:
        return read_groups(names)
    with tempfile.TemporaryDirectory() as folder:
        return read_groups(["made-up:1,2", str(write_made_up(Path(folder)))])


def main() -> int:
    """Judge all groups."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "groups", nargs="*", metavar="BUNDLE|NAME:COSTS|FILE.npz", help="what to judge"
    )
    args = parser.parse_args()
    if not (args.groups or args.smoke):
        parser.error("give bundles, or NAME:COSTS and files of predictions")
    groups = asked_groups(args.groups)
    report, misses = [], []
    for name, subjects in groups.items():
        group, missed = judge_group(name, subjects)
        report.append(group)
        misses += missed
    print("\n" + ("\n".join(misses) or "every bar is cleared"))
    print_report({"groups": report, "misses": misses}, smoke=args.smoke)
    return 1 if misses and not args.smoke else 0


def read_groups(arguments: Sequence[str]) -> dict[str, list[Subject]]:
    """Read bundles and files of predictions, by the name of their group."""
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
    return groups


def write_made_up(folder: Path) -> Path:
    """Write a small file of made-up predictions for a smoke run."""
    path = folder / "made-up.npz"
    arrays: dict[str, Any] = {}
    for seed, split in enumerate(("calibration", "test")):
        log_probs, labels = make_problem(2, 120, 3, seed)
        arrays |= {f"{split}_probs": np.exp(log_probs), f"{split}_labels": labels}
    np.savez(path, allow_pickle=False, **arrays)
    return path


def judge_group(name: str, subjects: Sequence[Subject]) -> tuple[dict[str, Any], list[str]]:
    """Compare the policies on all files of a group; the figures, and the bars that were missed."""
    outcomes = [judge(subject._replace(fitted=None)) for subject in subjects]
    print(f"\n{name}: {', '.join(subject.name for subject in subjects)}")
    for policy in POLICIES:
        mean = np.mean([outcome.accuracy[policy] for outcome in outcomes], 0)
        print(f"  {policy:12} " + " ".join(f"{100 * share:7.2f}" for share in mean))
    differences = {}
    for ours, theirs, budgets, label in COMPARISONS:
        mean, low, high = difference(outcomes, ours, theirs, budgets)
        print(f"  {ours} - {theirs} ({label}): {mean:+.2f} [{low:+.2f}, {high:+.2f}]")
        differences[f"{ours} - {theirs} ({label})"] = [mean, low, high]
    worst = min(
        float((outcome.accuracy["stopping"] - outcome.accuracy["eenet"]).min())
        for outcome in outcomes
    )
    print(f"  stopping - eenet, worst budget of any file: {100 * worst:+.2f}", flush=True)
    misses = [miss for outcome in outcomes for miss in outcome.misses]
    misses += missed_bars(name, differences, worst)
    files = [subject.name for subject in subjects]
    return {"group": name, "files": files, **differences, "worst": 100 * worst}, misses


def missed_bars(name: str, differences: dict[str, list[float]], worst: float) -> list[str]:
    """The bars that a group misses, one sentence each."""
    misses = []
    if worst < -WORST_LOSS:
        misses.append(f"{name}: stopping is {-100 * worst:.2f} points below eenet somewhere")
    if differences["stopping - maxprob (tight)"][0] <= 0:
        misses.append(f"{name}: stopping does not beat maxprob where budgets are tight")
    if differences["eenet - maxprob (all)"][0] < -EENET_LOSS:
        misses.append(f"{name}: eenet is more than {EENET_LOSS} points below maxprob")
    return misses


if __name__ == "__main__":
    sys.exit(main())
