"""How long waiting and running of each stage have taken lately."""

from collections import deque

import numpy as np

from models.stage_costs import StageCosts

RECENT_BATCHES = 256
REFRESH_BATCHES = 16
SLOW_PERCENTILE = 99


class StageTimes:
    """Times from ready to done of recent batches, per stage; any thread may add and ask.

    Args:
        num_stages: K.
        costs: What to expect before any batch has run; None: nothing.
        max_batch: Rows of the batches to expect.
    """

    def __init__(self, num_stages: int, costs: StageCosts | None, max_batch: int) -> None:
        self._recent_s = [deque[float](maxlen=RECENT_BATCHES) for _ in range(num_stages)]
        self._slow_s = [
            0.0 if costs is None else costs.batch_ms(stage, max_batch) / 1e3
            for stage in range(num_stages)
        ]
        self._fresh = [0] * num_stages

    def add(self, stage: int, seconds: float) -> None:
        """Take in how long the row of a batch that waited longest took, its waiting included."""
        self._recent_s[stage].append(seconds)
        self._fresh[stage] += 1

    def slow_s(self, stage: int) -> float:
        """The 99th percentile; worked out anew after some batches."""
        recent = self._recent_s[stage]
        if self._fresh[stage] >= min(REFRESH_BATCHES, len(recent)) > 0:
            self._fresh[stage] = 0
            self._slow_s[stage] = float(np.percentile(list(recent), SLOW_PERCENTILE))
        return self._slow_s[stage]
