"""The rolling window: the newest samples, their mean, and their credit against the budget."""

import math
from collections import deque
from typing import NamedTuple


class Observation(NamedTuple):
    """A sample of the window.

    Attributes:
        time_s: Time of completion.
        latency_ms: Its latency.
        exit: The exit it took.
        credit_ms: Sum of the credits (budget minus latency) of all samples up to this one.
    """

    time_s: float
    latency_ms: float
    exit: int
    credit_ms: float


class RollingWindow:
    """The last samples, limited by count and by age; every query takes constant time.

    Args:
        size: Most samples in the window.
        max_age_s: Samples older than this do not count.
        num_exits: K.
    """

    def __init__(self, size: int, max_age_s: float, num_exits: int) -> None:
        self.size = size
        self.max_age_s = max_age_s
        self._seen: deque[Observation] = deque()
        self._latency_sum = 0.0
        self._credit_before_ms = 0.0  # sum over all samples before the oldest
        self._exit_counts = [0] * num_exits
        self._forgiven = 0  # oldest samples, whose credit no longer counts
        self._additions = 0
        self._aged = False  # whether samples drop out by age rather than by count

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def capacity(self) -> int:
        """Number of samples in a full window; at low traffic the age limits it."""
        return len(self._seen) if self._aged else self.size

    @property
    def is_full(self) -> bool:
        """Whether every new sample pushes one out."""
        return len(self._seen) >= self.capacity

    @property
    def mean_ms(self) -> float | None:
        """Mean latency; None before the first sample."""
        return self._latency_sum / len(self._seen) if self._seen else None

    @property
    def exit_rates(self) -> list[float] | None:
        """Share of the samples at each exit, (K,); None before the first sample."""
        if not self._seen:
            return None
        return [count / len(self._seen) for count in self._exit_counts]

    def credit_ms(self, horizon: int) -> float:
        """Return the credit of the samples that stay while the next `horizon` samples arrive."""
        leaving = max(len(self._seen) - (self.capacity - horizon), self._forgiven)
        if leaving >= len(self._seen):
            return 0.0
        before_ms = self._seen[leaving - 1].credit_ms if leaving else self._credit_before_ms
        return self._seen[-1].credit_ms - before_ms

    def forgive(self) -> None:
        """Let the credit of the samples so far count no longer; their mean still does."""
        self._forgiven = len(self._seen)

    def add(self, time_s: float, latency_ms: float, exit: int, credit_ms: float) -> None:
        """Add a sample.

        Args:
            time_s: Time of completion.
            latency_ms: Its latency.
            exit: The exit it took.
            credit_ms: Its budget minus its latency.
        """
        total_ms = (self._seen[-1].credit_ms if self._seen else self._credit_before_ms) + credit_ms
        self._seen.append(Observation(time_s, latency_ms, exit, total_ms))
        self._latency_sum += latency_ms
        self._exit_counts[exit] += 1
        if len(self._seen) > self.size:
            self._drop_oldest()
            self._aged = False
        self._additions += 1
        if self._additions % self.size == 0:  # a running sum accumulates rounding errors
            self._latency_sum = math.fsum(each.latency_ms for each in self._seen)

    def expire(self, now_s: float) -> None:
        """Drop the samples that are too old."""
        while self._seen and now_s - self._seen[0].time_s > self.max_age_s:
            self._drop_oldest()
            self._aged = bool(self._seen)  # an empty window shows nothing about the traffic

    def _drop_oldest(self) -> None:
        oldest = self._seen.popleft()
        self._latency_sum -= oldest.latency_ms
        self._credit_before_ms = oldest.credit_ms
        self._exit_counts[oldest.exit] -= 1
        self._forgiven = max(self._forgiven - 1, 0)
