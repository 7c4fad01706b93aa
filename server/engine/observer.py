"""The engine's reports about its work, for metrics and drift."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server.engine.request import InferenceRequest


class EngineObserver(Protocol):
    """Receives reports from the engine's workers; any thread calls, and must not wait."""

    def on_start(self, requests: Sequence[InferenceRequest]) -> None:
        """Report that the calling worker is about to run a stage for these requests."""

    def on_step(self, stage: int, rows: int, elapsed_ms: float) -> None:
        """Report that a batch went through a stage, its head and the policy included."""

    def on_scores(self, exit: int, scores: NDArray[np.float64], parameter: float) -> None:
        """Report exit scores (A,) of requests whose way depends on the active parameter alone."""

    def on_cancelled(self, count: int) -> None:
        """Report requests dropped because their client left."""


class NullObserver:
    """Ignores every report."""

    def on_start(self, requests: Sequence[InferenceRequest]) -> None:
        """Ignore the beginning."""

    def on_step(self, stage: int, rows: int, elapsed_ms: float) -> None:
        """Ignore the batch."""

    def on_scores(self, exit: int, scores: NDArray[np.float64], parameter: float) -> None:
        """Ignore the scores."""

    def on_cancelled(self, count: int) -> None:
        """Ignore the departures."""
