"""Recorded samples that a simulated server serves, in all variants."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.control.drift_sets import DriftSet
from benchmarks.control.scenarios import Phase
from scheduler.combiner import Combiner

Array = NDArray[np.float64]


class RecordedSamples(NamedTuple):
    """Recorded samples in all variants, one variant after the other.

    Attributes:
        log_probs: Predictions of every exit, (K, N, C).
        correct: Whether each exit is right, (N, K).
        labels: True classes, (N,).
        stretch: Time of a sample at each stage as a multiple of the costs, (N,).
        variants: Rows of each variant.
    """

    log_probs: NDArray[np.floating]
    correct: NDArray[np.bool_]
    labels: NDArray[np.int64]
    stretch: Array
    variants: Mapping[str, slice]

    @classmethod
    def of_drift(cls, drift: DriftSet) -> "RecordedSamples":
        """Take the samples of a recording; the time of a text depends on its length."""
        variants, count = len(drift.variants), len(drift.labels)
        log_probs = np.concatenate(list(drift.log_probs), axis=1)
        labels = np.tile(drift.labels, variants)
        stretch = np.ones(variants * count)
        if drift.tokens is not None and drift.length_costs is not None:
            lengths, costs_ms = drift.length_costs
            times_ms = np.interp(drift.tokens, lengths, costs_ms[-1])  # (V, N)
            stretch = (times_ms / times_ms[0].mean()).ravel()
        return cls(
            log_probs,
            (log_probs.argmax(-1) == labels).T,
            labels,
            stretch,
            {name: slice(v * count, (v + 1) * count) for v, name in enumerate(drift.variants)},
        )

    def combined(self, combiner: Combiner) -> "RecordedSamples":
        """Return the samples as a server answers them."""
        log_probs = combiner.combine_all(self.log_probs)
        return self._replace(log_probs=log_probs, correct=(log_probs.argmax(-1) == self.labels).T)

    def of(self, phase: Phase) -> NDArray[np.intp]:
        """The rows that may arrive in a phase.

        Raises:
            ValueError: If there are none.
        """
        if phase.inputs not in self.variants:
            raise ValueError(
                f"no predictions are recorded for inputs {phase.inputs!r}; there are "
                f"{', '.join(self.variants)}"
            )
        rows = np.arange(len(self.labels))[self.variants[phase.inputs]]
        if phase.classes is not None:
            rows = rows[np.isin(self.labels[rows], phase.classes)]
        if not len(rows):
            raise ValueError(f"no sample of the classes {phase.classes} is recorded")
        return rows
