"""Fakes that several tests share."""

import threading

import numpy as np
from numpy.typing import NDArray


class RecordingObserver:
    """Keeps what an engine reports."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, float]] = []
        self.scores: list[tuple[int, list[float], float]] = []
        self.cancelled = 0
        self._lock = threading.Lock()

    def on_step(self, stage: int, rows: int, elapsed_ms: float) -> None:
        self.steps.append((stage, rows, elapsed_ms))

    def on_scores(self, exit: int, scores: NDArray[np.float64], parameter: float) -> None:
        self.scores.append((exit, np.round(scores, 6).tolist(), parameter))

    def on_cancelled(self, count: int) -> None:
        with self._lock:
            self.cancelled += count

    def take_scores(self) -> list[tuple[int, list[float], float]]:
        taken, self.scores = self.scores, []
        return taken
