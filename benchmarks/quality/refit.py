"""Gain of refitting to live rows after inputs have drifted, for benchmarks.quality.run."""

from collections.abc import Iterator

import numpy as np

from benchmarks.quality.subjects import CORRUPTED, Row, Subject, halves
from profiling.calibration import Predictions
from scheduler.fitted import Scheduler
from scheduler.fitting.fit import fit_scheduler
from scheduler.policy import exits_taken, replay
from server.pipeline.live import UNLABELLED, labelled

SHARES = (0.25, 0.5, 0.75)  # position between the first exit's cost and the last one's


def refit_rows(subject: Subject, splits: int) -> Iterator[Row]:
    """Accuracy on corrupted rows: the shipped scheduler, and two fitted to other such rows."""
    shares_right: dict[str, list[list[float]]] = {"shipped": [], "drawn": [], "true": []}
    claimed, right = [], []
    for seed in range(splits):
        seen, unseen = halves(subject.corrupted, seed)
        none = Predictions(seen.log_probs, np.full(len(seen.labels), UNLABELLED))
        drawn = labelled(none, subject.calibration, seed).predictions
        for name, rows in {"shipped": None, "drawn": drawn, "true": seen}.items():
            scheduler = subject.scheduler if rows is None else fitted(subject, rows, seed)
            shares_right[name].append(accuracy_at_costs(subject, scheduler, unseen))
        claimed.append(float(drawn.correct[:, -1].mean()))
        right.append(float(seen.correct[:, -1].mean()))
    arrays = {name: np.array(of_splits) for name, of_splits in shares_right.items()}
    for index, share in enumerate(SHARES):
        gains = {name: (arrays[name] - arrays["shipped"])[:, index] for name in ("drawn", "true")}
        yield {
            "subject": subject.name,
            "variant": CORRUPTED[subject.name],
            "splits": splits,
            "mean_cost_ms": subject.cost_ms(share),
            "accuracy": {name: float(each[:, index].mean()) for name, each in arrays.items()},
            "gain": {name: float(each.mean()) for name, each in gains.items()},
            "gain_sd": {name: float(each.std(ddof=1)) for name, each in gains.items()},
            "last_exit_by_drawn_labels": float(np.mean(claimed)),
            "last_exit_right": float(np.mean(right)),
        }


def fitted(subject: Subject, rows: Predictions, seed: int) -> Scheduler:
    """Fit the shipped kind of policy to other rows, at the bundle's costs."""
    policy, frontier, _ = subject.scheduler
    return fit_scheduler(policy.kind, rows.log_probs, rows.labels, frontier.costs_ms, seed=seed)


def accuracy_at_costs(subject: Subject, scheduler: Scheduler, rows: Predictions) -> list[float]:
    """Accuracy at mean costs of these rows, interpolated between points of the frontier."""
    policy, frontier, combiner = scheduler
    rows = rows.combined(combiner)
    replayed, correct = replay(policy, rows.log_probs), rows.correct
    points = []
    for parameter in frontier.parameters:
        exits = exits_taken(policy, replayed, float(parameter))
        cost_ms = frontier.costs_ms[exits].mean()
        points.append((cost_ms, correct[np.arange(len(exits)), exits].mean()))
    costs_ms, accuracy = np.array(sorted(points)).T
    return [float(np.interp(subject.cost_ms(share), costs_ms, accuracy)) for share in SHARES]
