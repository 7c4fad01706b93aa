"""Whether a request with a deadline can still reach the next exit."""

from collections import deque

import numpy as np

from models.stage_costs import StageCosts
from server.engine.request import InferenceRequest
from server.errors import DeadlineExceeded

RECENT = 256
RECENT_S = 10.0
REFRESH_S = 0.05
SLOW_PERCENTILE = 99
TRIAL_S = 1.0


class LatencyWindow:
    """The 99th percentile of recent durations; any thread may append and ask.

    Attributes:
        times: When each ended and how long it took, in seconds, the latest last.
    """

    def __init__(self) -> None:
        self.times = deque[tuple[float, float]](maxlen=RECENT)
        self._p99_s: float | None = None
        self._refreshed_s = -float("inf")

    def p99_s(self, now_s: float) -> float | None:
        """Return the percentile of what ended within the last 10 s; None if nothing did.

        It is computed again at most every 50 ms.
        """
        if self._p99_s is None or now_s - self._refreshed_s >= REFRESH_S:
            self._refreshed_s = now_s
            recent = [took for ended_s, took in list(self.times) if now_s - ended_s <= RECENT_S]
            self._p99_s = float(np.percentile(recent, SLOW_PERCENTILE)) if recent else None
        return self._p99_s


class Deadlines:
    """Predicts from recent batches whether a deadline would pass; any thread may record and ask.

    Args:
        num_stages: Number of stages, K.
        costs: What to expect of a stage before any batch has run; None: no time at all.
        max_batch: Rows of the batches to expect.

    Attributes:
        stages: Per stage, how long the request of each batch that waited longest took, its waiting
            included, (K,).
        delivery: How long finished requests took to where they are answered.
    """

    def __init__(self, num_stages: int, costs: StageCosts | None, max_batch: int) -> None:
        self.stages = [LatencyWindow() for _ in range(num_stages)]
        self.delivery = LatencyWindow()
        self._expected_s = [
            0.0 if costs is None else costs.batch_ms(stage, max_batch) / 1e3
            for stage in range(num_stages)
        ]
        self._tried_s = [-float("inf")] * num_stages

    def would_miss_next_exit(self, request: InferenceRequest, now_s: float) -> bool:
        """Whether the deadline would pass before the next exit, with a chance of 1 in 100."""
        if request.deadline_s is None:
            return False
        expected_s = self._stage_s(request.stage + 1, now_s) + (self.delivery.p99_s(now_s) or 0.0)
        return now_s + expected_s > request.deadline_s

    def _stage_s(self, stage: int, now_s: float) -> float:
        """Return how long a stage takes at worst.

        Without expiry, one slow spell would keep deadline requests out of a stage for good, and its
        recovery would never be observed. So where nothing recent is known, one request a second may
        try the stage, and every request that has longer than that second.
        """
        p99_s = self.stages[stage].p99_s(now_s)
        if p99_s is not None:
            return p99_s
        if now_s - self._tried_s[stage] < TRIAL_S:
            return TRIAL_S
        self._tried_s[stage] = now_s
        return self._expected_s[stage]


def deadline_error() -> DeadlineExceeded:
    """Return the error of a request whose deadline passed before the first exit."""
    return DeadlineExceeded(
        "the deadline passed before the first exit; give more time or lower the load"
    )
