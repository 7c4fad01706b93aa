"""How often certified promises are broken on unseen rows, and their cost. JSON on the last line.

    .venv/bin/python -m benchmarks.certificates [BUNDLE ... NAME:COSTS FILE.npz ...]

Fits `stopping` to the calibration rows of each bundle (default: the shipped ones) or file of
`eenet evaluate --predictions`, with and without labels. Then it splits all rows that the fit has
not seen at random, again and again: certifies on one part, judges on the other. Beside it the
cheapest point whose measured risk keeps the promise, without a bound.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import BUNDLES, make_parser, print_report
from benchmarks.policy_bars import read_groups, write_made_up
from profiling.calibration import Recorded
from scheduler.fitted import Scheduler
from scheduler.fitting.fit import fit_scheduler
from scheduler.frontier import Frontier
from scheduler.guarantee import (
    MAX_POINTS,
    FrontierBounds,
    Losses,
    Measure,
    Promise,
    bound_points,
    exit_losses,
)
from scheduler.policy import exits_taken, replay
from server.cli.evaluate import Subject

EPSILONS = (0.005, 0.01, 0.02)
CASES: tuple[tuple[Measure, bool], ...] = (  # measure, and whether the fit is label-free
    ("accuracy_loss", False),
    ("disagreement", False),
    ("disagreement", True),
)
SMOKE_EPSILONS, SMOKE_ROWS, SMOKE_SPLITS = (0.2, 0.3), 60, 2


class Outcome(NamedTuple):
    """One promise on one split, or the mean of many.

    Attributes:
        violated: Whether the other rows have a larger risk than promised.
        naive_violated: The same of the point that is chosen by its measured risk.
        cost: Mean cost of the other rows, as a share of the whole network's.
        certified: Whether anything is certified.
    """

    violated: float
    naive_violated: float
    cost: float
    certified: float


class Replayed(NamedTuple):
    """A fitted policy on rows that it has not seen.

    Attributes:
        frontier: G points.
        losses: Loss of each row at each point, (G, N).
        costs: Cost of each row at each point, as a share of the whole network's, (G, N).
    """

    frontier: Frontier
    losses: Losses
    costs: NDArray[np.float32]


def replayed_on(scheduler: Scheduler, measure: Measure, recorded: Recorded) -> Replayed:
    """Replay the points that are tested on the certification and test rows."""
    parts = [part for part in recorded[1:] if part is not None]
    log_probs = np.concatenate([part.log_probs for part in parts], 1)
    labels = np.concatenate([part.labels for part in parts])
    log_probs = scheduler.combiner.combine_all(log_probs)
    policy, frontier = scheduler.policy, scheduler.frontier.spread(MAX_POINTS)
    scored, rows = replay(policy, log_probs), np.arange(len(labels))
    by_exit = exit_losses(measure, log_probs, labels)
    shares = (frontier.costs_ms / frontier.costs_ms[-1]).astype(np.float32)
    exits = [exits_taken(policy, scored, value) for value in frontier.parameters.tolist()]
    losses: Losses = np.stack([by_exit[taken, rows] for taken in exits])
    return Replayed(frontier, losses, np.stack([shares[taken] for taken in exits]))


def judge_split(
    replayed: Replayed,
    promises: Sequence[Promise],
    seen: NDArray[np.intp],
    rest: NDArray[np.intp],
) -> list[Outcome]:
    """Certify each promise on the rows `seen` and judge it on the `rest`.

    The promises differ in epsilon alone, and the last has the largest.
    """
    frontier, losses, costs = replayed
    known: Losses = np.ascontiguousarray(losses[:, seen])
    bounds = bound_points(len(frontier), known.__getitem__, promises[-1])
    never, confidence = float(frontier.parameters[-1]), promises[-1].confidence
    table = FrontierBounds(frontier, never, confidence, len(seen), bounds)
    measured, risks = known.mean(1), losses[:, rest].mean(1)
    found = []
    for promise in promises:
        certificate = table.certify(promise.epsilon)
        place = frontier.nearest(certificate.parameter)
        above = np.flatnonzero(measured > promise.epsilon)
        naive = int(above[-1]) + 1 if len(above) else 0
        violated, naive_violated = (bool(risks[each] > promise.epsilon) for each in (place, naive))
        cost = float(costs[place, rest].mean())
        found.append(Outcome(violated, naive_violated, cost, certificate.certified))
    return found


def judge_promises(
    replayed: Replayed, promises: Sequence[Promise], *, rows: int, splits: int
) -> list[Outcome]:
    """Return the mean outcome of each promise over random splits of all rows."""
    rng, found = np.random.default_rng(0), []
    for _ in range(splits):
        seen, rest = np.split(rng.permutation(replayed.losses.shape[1]), [rows])
        found.append(judge_split(replayed, promises, seen, rest))
    return [Outcome(*mean) for mean in np.mean(found, 0).tolist()]


def judge(
    subject: Subject, *, epsilons: Sequence[float], rows: int, splits: int
) -> list[dict[str, Any]]:
    """Print and return a row for each promise on one set of predictions."""
    recorded = subject.recorded
    log_probs, labels = recorded.calibration
    unseen = sum(len(part.labels) for part in recorded[1:] if part is not None)
    rows = min(rows, unseen // 2)
    print(f"\n{subject.name}: {rows} of {unseen} unseen rows certify, the others judge")
    print("promise                                   violated %   without bound %   cost %")
    fits = {
        label_free: fit_scheduler(
            "stopping", log_probs, None if label_free else labels, subject.costs_ms
        )
        for label_free in (False, True)
    }
    table = []
    for measure, label_free in CASES:
        replayed = replayed_on(fits[label_free], measure, recorded)
        promises = [Promise(measure, epsilon) for epsilon in epsilons]
        found = judge_promises(replayed, promises, rows=rows, splits=splits)
        for promise, outcome in zip(promises, found, strict=True):
            name = f"{measure} <= {100 * promise.epsilon:g} %{', label-free' * label_free}"
            print(
                f"{name:40s} {100 * outcome.violated:11.1f} {100 * outcome.naive_violated:17.1f} "
                f"{100 * outcome.cost:8.1f}",
                flush=True,
            )
            about = asdict(promise) | {"label_free": label_free}
            table.append({"name": subject.name, "rows": rows, **about, **outcome._asdict()})
    return table


def main() -> None:
    """Judge all sets of predictions."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "groups", nargs="*", metavar="BUNDLE|NAME:COSTS|FILE.npz", help="predictions to judge on"
    )
    parser.add_argument("--rows", type=int, default=2000, help="rows that certify (%(default)s)")
    parser.add_argument("--splits", type=int, default=200, help="random splits (%(default)s)")
    args = parser.parse_args()
    epsilons, rows, splits = (
        (SMOKE_EPSILONS, SMOKE_ROWS, SMOKE_SPLITS)
        if args.smoke
        else (EPSILONS, args.rows, args.splits)
    )
    with tempfile.TemporaryDirectory() as folder:
        default = (
            ["made-up:1,2", str(write_made_up(Path(folder)))]
            if args.smoke
            else [str(bundle) for bundle in BUNDLES.values()]
        )
        groups = read_groups(args.groups or default)
    results = [
        row
        for subjects in groups.values()
        for subject in subjects
        for row in judge(subject, epsilons=epsilons, rows=rows, splits=splits)
    ]
    print_report({"splits": splits, "results": results}, smoke=args.smoke)


if __name__ == "__main__":
    main()
