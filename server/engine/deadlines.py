"""Whether a request with a deadline can still reach the first exit, or the next."""

from collections import deque

import numpy as np

from models.stage_costs import StageCosts
from server.engine.request import InferenceRequest
from server.errors import DeadlineExceeded

RECENT = 256
RECENT_S = 10.0
REFRESH_S = 0.05
SLOW_PERCENTILE, USUAL_PERCENTILE = 99, 50
TRIAL_S = 1.0


class LatencyWindow:
    """A percentile of recent durations; any thread may append and ask.

    Args:
        percentile: Which.

    Attributes:
        times: When each ended and how long it took, in seconds or as a multiple of what was
            expected, the latest last.
    """

    def __init__(self, percentile: float = SLOW_PERCENTILE) -> None:
        self.times = deque[tuple[float, float]](maxlen=RECENT)
        self._percentile = percentile
        self._value: float | None = None
        self._refreshed_s = -float("inf")

    def value(self, now_s: float) -> float | None:
        """Return the percentile of what ended within the last 10 s; None if nothing did.

        It is computed again at most every 50 ms.
        """
        if self._value is None or now_s - self._refreshed_s >= REFRESH_S:
            self._refreshed_s = now_s
            recent = [took for ended_s, took in list(self.times) if now_s - ended_s <= RECENT_S]
            self._value = float(np.percentile(recent, self._percentile)) if recent else None
        return self._value


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
        self._slowdown = LatencyWindow(USUAL_PERCENTILE)  # of batches at the first stage
        none_ms = np.zeros((num_stages, max_batch + 1))
        costs_s = (none_ms if costs is None else costs.table_ms(max_batch)) / 1e3
        self._expected_s: list[float] = costs_s[:, -1].tolist()
        self._first_runs_s: list[float] = costs_s[0].tolist()
        self._tried_s = [-float("inf")] * num_stages

    def note_first_run(self, rows: int, now_s: float, took_s: float) -> None:
        """Note how long a batch ran at the first stage, without its waiting."""
        if (expected_s := self._first_run_s(rows)) > 0:
            self._slowdown.times.append((now_s, took_s / expected_s))

    def would_miss_first_exit(self, request: InferenceRequest, now_s: float, rows: int) -> bool:
        """Whether the deadline would pass before a batch that starts now reaches the first exit.

        Running such a request takes the time in which another would be answered. Under overload
        nearly all that come to the front of a full queue are of this kind.
        """
        if request.deadline_s is None:
            return False
        slowdown = self._slowdown.value(now_s)
        expected_s = self._first_run_s(rows) * (1.0 if slowdown is None else slowdown)
        return now_s + expected_s >= request.deadline_s

    def would_miss_next_exit(self, request: InferenceRequest, now_s: float) -> bool:
        """Whether the deadline would pass before the next exit, with a chance of 1 in 100."""
        if request.deadline_s is None:
            return False
        expected_s = self._stage_s(request.stage + 1, now_s) + (self.delivery.value(now_s) or 0.0)
        return now_s + expected_s > request.deadline_s

    def _first_run_s(self, rows: int) -> float:
        return self._first_runs_s[min(rows, len(self._first_runs_s) - 1)]

    def _stage_s(self, stage: int, now_s: float) -> float:
        """Return how long a stage takes at worst.

        Without expiry, one slow spell would keep deadline requests out of a stage for good, and its
        recovery would never be observed. So where nothing recent is known, one request a second may
        try the stage, and every request that has longer than that second.
        """
        slow_s = self.stages[stage].value(now_s)
        if slow_s is not None:
            return slow_s
        if now_s - self._tried_s[stage] < TRIAL_S:
            return TRIAL_S
        self._tried_s[stage] = now_s
        return self._expected_s[stage]


def deadline_error() -> DeadlineExceeded:
    """Return the error of a request whose deadline passed before the first exit."""
    return DeadlineExceeded(
        "the deadline passes before the first exit; give more time or lower the load"
    )
