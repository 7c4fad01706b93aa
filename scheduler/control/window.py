"""The rolling window: the newest samples, their mean, and what they left of their budgets."""

import math
from collections import deque
from typing import NamedTuple


class Observation(NamedTuple):
    """A sample of the window.

    Attributes:
        time_s: When it completed.
        latency_ms: What it took.
        exit: Where it left.
        left_ms: Of their shares of the budget, all samples until this one; below 0 they took more.
    """

    time_s: float
    latency_ms: float
    exit: int
    left_ms: float


class RollingWindow:
    """The last samples, by count and by age; no question takes long, however many they are.

    Args:
        size: The most samples.
        max_age_s: No sample older than this counts.
        num_exits: K.
    """

    def __init__(self, size: int, max_age_s: float, num_exits: int) -> None:
        self.size = size
        self.max_age_s = max_age_s
        self._seen: deque[Observation] = deque()
        self._latency_sum = 0.0
        self._left_before_ms = 0.0  # all samples until the one before the oldest
        self._exit_counts = [0] * num_exits
        self._additions = 0
        self._aged = False  # whether samples leave by age rather than by count

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def capacity(self) -> int:
        """Samples that it holds once it is full: where few come, those of its age."""
        return len(self._seen) if self._aged else self.size

    @property
    def is_full(self) -> bool:
        """Whether every sample that comes pushes one out."""
        return len(self._seen) >= self.capacity

    @property
    def mean_ms(self) -> float | None:
        """Of the latency; None before the first sample."""
        return self._latency_sum / len(self._seen) if self._seen else None

    @property
    def exit_rates(self) -> list[float] | None:
        """Share of the samples at each exit, (K,); None before the first sample."""
        if not self._seen:
            return None
        return [count / len(self._seen) for count in self._exit_counts]

    def credit_ms(self, horizon: int) -> float:
        """What those samples left of their budgets that stay while `horizon` others come."""
        leaving = max(len(self._seen) - (self.capacity - horizon), 0)
        if leaving >= len(self._seen):
            return 0.0
        before_ms = self._seen[leaving - 1].left_ms if leaving else self._left_before_ms
        return self._seen[-1].left_ms - before_ms

    def add(self, time_s: float, latency_ms: float, exit: int, left_ms: float) -> None:
        """Take a sample in.

        Args:
            time_s: When it completed.
            latency_ms: What it took.
            exit: Where it left.
            left_ms: Of its own share of the budget.
        """
        total_ms = (self._seen[-1].left_ms if self._seen else self._left_before_ms) + left_ms
        self._seen.append(Observation(time_s, latency_ms, exit, total_ms))
        self._latency_sum += latency_ms
        self._exit_counts[exit] += 1
        if len(self._seen) > self.size:
            self._forget_oldest()
            self._aged = False
        self._additions += 1
        if self._additions % self.size == 0:  # adding and taking away piles up rounding errors
            self._latency_sum = math.fsum(each.latency_ms for each in self._seen)

    def expire(self, now_s: float) -> None:
        """Forget what is too old."""
        while self._seen and now_s - self._seen[0].time_s > self.max_age_s:
            self._forget_oldest()
            self._aged = bool(self._seen)  # of a window that ran empty nothing is known

    def _forget_oldest(self) -> None:
        oldest = self._seen.popleft()
        self._latency_sum -= oldest.latency_ms
        self._left_before_ms = oldest.left_ms
        self._exit_counts[oldest.exit] -= 1
