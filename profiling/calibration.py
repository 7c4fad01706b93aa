"""Recorded predictions of every exit: all that fitting and judging a scheduler needs."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.backend import StageBackend

RECORD_ROWS = 100


class Predictions(NamedTuple):
    """Log-probabilities (K, N, C) of every exit and the true labels (N,).

    They are kept as float16 logarithms: float16 probabilities would tie at 1.0 where single
    precision tells them apart.
    """

    log_probs: NDArray[np.float16]
    labels: NDArray[np.int64]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each exit is right, (N, K)."""
        right: NDArray[np.bool_] = (self.log_probs.argmax(-1) == self.labels).T
        return right


class Recorded(NamedTuple):
    """The two disjoint sets a bundle carries."""

    calibration: Predictions
    test: Predictions


def record(
    backend: StageBackend, inputs: NDArray[np.float32], labels: NDArray[np.int64]
) -> Predictions:
    """Run inputs (N, ...) through every exit."""
    parts = []
    for start in range(0, len(inputs), RECORD_ROWS):
        state, rows = inputs[start : start + RECORD_ROWS], []
        for k in range(backend.num_exits):
            state = backend.run_stage(k, state)
            rows.append(backend.run_head(k, state).log_probs)
        parts.append(np.stack(rows))
    return Predictions(np.concatenate(parts, 1).astype(np.float16), labels)


def save_recorded(recorded: Recorded, path: Path) -> None:
    """Write both sets into one npz."""
    np.savez_compressed(
        path,
        allow_pickle=False,
        calibration_log_probs=recorded.calibration.log_probs,
        calibration_labels=recorded.calibration.labels.astype(np.int32),
        test_log_probs=recorded.test.log_probs,
        test_labels=recorded.test.labels.astype(np.int32),
    )


def load_recorded(path: Path) -> Recorded:
    """Read what `save_recorded` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Recorded(
            *(
                Predictions(arrays[f"{part}_log_probs"], arrays[f"{part}_labels"].astype(np.int64))
                for part in ("calibration", "test")
            )
        )
