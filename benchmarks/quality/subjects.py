"""The shipped bundles and their predictions for drifting inputs, for benchmarks.quality.run."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.control.drift_sets import DriftSet, load_drift_set
from benchmarks.harness import BUNDLES, REPO, recorded_of, scheduler_of
from profiling.calibration import Predictions
from scheduler.fitted import Scheduler
from scheduler.monitoring.agreement import WINDOW, AgreementCurve

Row = dict[str, Any]  # of a table

CORRUPTED = {"image": "noise-3", "text": "misspelt-30"}  # to hold a floor on, and to refit to


class Subject(NamedTuple):
    """A shipped bundle and its predictions for drifting inputs."""

    name: str
    scheduler: Scheduler
    calibration: Predictions
    drift: DriftSet

    @classmethod
    def read(cls, name: str) -> "Subject":
        """Read the bundle of a modality."""
        bundle = BUNDLES[name]
        return cls(
            name,
            scheduler_of(bundle),
            recorded_of(bundle).calibration,
            load_drift_set(REPO / f"benchmarks/control/data/{name}.npz"),
        )

    @property
    def corrupted(self) -> Predictions:
        """Predictions for the variant that floor and refitting are tried on."""
        return self.drift.predictions(CORRUPTED[self.name])

    def answers(self, rows: Predictions) -> NDArray[np.floating]:
        """What the shipped scheduler answers, (K, N, C)."""
        return rows.combined(self.scheduler.combiner).log_probs

    def curve(self, window: int = WINDOW) -> AgreementCurve:
        """An empty curve of the shipped policy."""
        return AgreementCurve(self.scheduler.policy, self.scheduler.frontier, window)

    def cost_ms(self, share: float) -> float:
        """The cost at a position between the first exit's and the last one's."""
        costs_ms = self.scheduler.frontier.costs_ms
        return float(costs_ms[0] + share * (costs_ms[-1] - costs_ms[0]))


def halves(rows: Predictions, seed: int) -> tuple[Predictions, Predictions]:
    """Split the rows into two random halves."""
    order = np.random.default_rng(seed).permutation(len(rows.labels))
    first, second = np.split(order, [len(order) // 2])
    return (
        Predictions(rows.log_probs[:, first], rows.labels[first]),
        Predictions(rows.log_probs[:, second], rows.labels[second]),
    )
