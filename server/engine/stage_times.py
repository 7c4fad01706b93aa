"""How long something has taken lately."""

from collections import deque

import numpy as np

RECENT = 256
RECENT_S = 10.0
REFRESH, REFRESH_S = 16, 1.0  # after so many, or so long
SLOW_PERCENTILE = 99


class LatencyWindow:
    """Times of what happened lately; any thread may add and ask."""

    def __init__(self) -> None:
        self._slow_s: float | None = None
        self._recent = deque[tuple[float, float]](maxlen=RECENT)  # when it ended, how long
        self._fresh = 0
        self._worked_out_s = -float("inf")

    def add(self, seconds: float, now_s: float) -> None:
        """Take in how long something took that has ended now."""
        self._recent.append((now_s, seconds))
        self._fresh += 1

    def p99_s(self, now_s: float) -> float | None:
        """The 99th percentile of what ended within 10 s, worked out anew now and then; or None."""
        due = self._fresh >= (1 if self._slow_s is None else min(REFRESH, len(self._recent)))
        if due or now_s - self._worked_out_s > REFRESH_S:
            self._fresh, self._worked_out_s = 0, now_s
            lately = [took for ended_s, took in list(self._recent) if now_s - ended_s <= RECENT_S]
            self._slow_s = float(np.percentile(lately, SLOW_PERCENTILE)) if lately else None
        return self._slow_s
