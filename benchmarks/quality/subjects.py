"""The shipped bundles and what they say of drifting inputs, for benchmarks/quality/run.py."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.control.drift_sets import DriftSet, load_drift_set
from profiling.calibration import Predictions, load_recorded
from scheduler.fitted import Scheduler, load_scheduler

Row = dict[str, Any]  # of a table

REPO = Path(__file__).resolve().parents[2]
BUNDLES = {"image": "cifar10-resnet56", "text": "ag-news-minilm"}
SPOILT = {"image": "noise-3", "text": "misspelt-30"}  # to hold a floor on, and to refit to


class Subject(NamedTuple):
    """A shipped bundle and what it says of drifting inputs."""

    name: str
    scheduler: Scheduler
    calibration: Predictions
    drift: DriftSet

    @classmethod
    def read(cls, name: str) -> "Subject":
        """By modality."""
        bundle = REPO / "models/zoo" / BUNDLES[name]
        return cls(
            name,
            load_scheduler(bundle),
            load_recorded(bundle / "calibration.npz").calibration,
            load_drift_set(REPO / f"benchmarks/control/data/{name}.npz"),
        )

    @property
    def spoilt(self) -> Predictions:
        """The form that floor and refitting are tried on."""
        return self.drift.predictions(SPOILT[self.name])

    def cost_ms(self, share: float) -> float:
        """So far from the first exit's cost to the last one's."""
        costs_ms = self.scheduler.frontier.costs_ms
        return float(costs_ms[0] + share * (costs_ms[-1] - costs_ms[0]))


def halves(rows: Predictions, seed: int) -> tuple[Predictions, Predictions]:
    """Two halves of the rows, drawn."""
    order = np.random.default_rng(seed).permutation(len(rows.labels))
    first, second = np.split(order, [len(order) // 2])
    return (
        Predictions(rows.log_probs[:, first], rows.labels[first]),
        Predictions(rows.log_probs[:, second], rows.labels[second]),
    )
