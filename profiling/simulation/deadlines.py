"""Whether a request with a deadline can still reach the next exit, as the engine predicts it.

The rules are those of server/engine/deadlines.py, which a test compares with these.
"""

from collections import deque

import numpy as np

from models.stage_costs import StageCosts

RECENT, RECENT_MS, REFRESH_MS, TRIAL_MS = 256, 10e3, 50.0, 1e3
SLOW_PERCENTILE = 99
NEVER = float("inf")


class DeadlineForecast:
    """The 99th percentile of recent times at each stage, waiting included.

    Args:
        costs: What to expect of a stage before any batch has run.
        max_batch: Rows of the batches to expect.
    """

    def __init__(self, costs: StageCosts, max_batch: int) -> None:
        stages = range(costs.num_exits)
        self._times = [deque[tuple[float, float]](maxlen=RECENT) for _ in stages]
        self._slow_ms: list[float | None] = [None for _ in stages]
        self._refreshed_ms = [-NEVER for _ in stages]
        self._tried_ms = [-NEVER for _ in stages]
        self._expected_ms = [costs.batch_ms(stage, max_batch) for stage in stages]

    def record(self, stage: int, now_ms: float, took_ms: float) -> None:
        """Note how long the row of a batch that waited longest took."""
        self._times[stage].append((now_ms, took_ms))

    def stage_ms(self, stage: int, now_ms: float) -> float:
        """Return how long a stage takes at worst; where nothing is known, a few may try it."""
        slow_ms = self._recent_ms(stage, now_ms)
        if slow_ms is not None:
            return slow_ms
        if now_ms - self._tried_ms[stage] < TRIAL_MS:
            return TRIAL_MS
        self._tried_ms[stage] = now_ms
        return self._expected_ms[stage]

    def _recent_ms(self, stage: int, now_ms: float) -> float | None:
        if self._slow_ms[stage] is None or now_ms - self._refreshed_ms[stage] >= REFRESH_MS:
            self._refreshed_ms[stage] = now_ms
            recent = [took for ended, took in self._times[stage] if now_ms - ended <= RECENT_MS]
            self._slow_ms[stage] = float(np.percentile(recent, SLOW_PERCENTILE)) if recent else None
        return self._slow_ms[stage]
