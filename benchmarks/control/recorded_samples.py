"""Recorded samples that a simulated server serves, in all the forms in which they come."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.control.drift_sets import DriftSet
from benchmarks.control.scenarios import Phase

Array = NDArray[np.float64]


class RecordedSamples(NamedTuple):
    """Recorded samples in all the forms in which they come, one after the other.

    Attributes:
        log_probs: Of every exit, (K, N, C).
        correct: Whether each exit is right, (N, K).
        labels: True classes, (N,).
        stretch: Of a row's time at each stage, as a multiple of the costs, (N,).
        forms: Where the rows of each form lie.
    """

    log_probs: NDArray[np.float16]
    correct: NDArray[np.bool_]
    labels: NDArray[np.int64]
    stretch: Array
    forms: Mapping[str, slice]

    @classmethod
    def of_drift(cls, drift: DriftSet) -> "RecordedSamples":
        """Those of a recording; texts take as long as their length makes them."""
        forms, count = len(drift.variants), len(drift.labels)
        log_probs = np.concatenate(list(drift.log_probs), axis=1)
        labels = np.tile(drift.labels, forms)
        stretch = np.ones(forms * count)
        if drift.tokens is not None and drift.length_costs is not None:
            lengths, costs_ms = drift.length_costs
            times_ms = np.interp(drift.tokens, lengths, costs_ms[-1])  # (V, N)
            stretch = (times_ms / times_ms[0].mean()).ravel()
        return cls(
            log_probs,
            (log_probs.argmax(-1) == labels).T,
            labels,
            stretch,
            {form: slice(v * count, (v + 1) * count) for v, form in enumerate(drift.variants)},
        )

    def of(self, phase: Phase) -> NDArray[np.intp]:
        """The rows that may come in a phase.

        Raises:
            ValueError: If there are none.
        """
        if phase.inputs not in self.forms:
            raise ValueError(
                f"no predictions are recorded of inputs {phase.inputs!r}; there are "
                f"{', '.join(self.forms)}"
            )
        rows = np.arange(len(self.labels))[self.forms[phase.inputs]]
        if phase.classes is not None:
            rows = rows[np.isin(self.labels[rows], phase.classes)]
        if not len(rows):
            raise ValueError(f"no row of the classes {phase.classes} is recorded")
        return rows
