"""Admission: a bound on the samples in flight, and when to retry."""

import math
import time
from collections.abc import Callable

from prometheus_client import Gauge

from server.errors import NotReady, QueueFull, ServeError

RATE_MEMORY_S = 10.0
FEW_SAMPLES = 32  # always find a place: at low load the rate that is seen is the clients'
# From so many answers or so much busy time on, a rate is one. The first answer of a burst, whose
# batch has answered one sample and not yet the others, says nothing.
ENOUGH_ANSWERS, ENOUGH_BUSY_S = 32, 2.0


class Admission:
    """Counts the samples in flight; used from the event loop only.

    Args:
        max_samples: Most samples in flight.
        max_wait_s: Longest time that a sample should wait for those in flight.
        inflight: Gauge of the count.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        max_samples: int,
        inflight: Gauge,
        clock: Callable[[], float] = time.perf_counter,
        max_wait_s: float = math.inf,
    ) -> None:
        self.max_samples, self.max_wait_s = max_samples, max_wait_s
        self.samples = 0
        self.not_ready: str | None = None
        self._inflight = inflight
        self._clock = clock
        # Samples answered and seconds busy, both fading over RATE_MEMORY_S of busy time.
        self._answered = 0.0
        self._busy_s = 0.0
        self._last_s = clock()

    def admit(self, samples: int) -> None:
        """Admit samples.

        Raises:
            NotReady: While the server drains or is broken.
            QueueFull: If they would exceed a bound; Retry-After estimates when the queue will have
                drained.
        """
        if (refusal := self.refusal(samples)) is not None:
            raise refusal
        self.samples += samples
        self._inflight.set(self.samples)

    def refusal(self, samples: int) -> ServeError | None:
        """Return why samples would not be admitted now; None if they would."""
        if self.not_ready is not None:
            return NotReady(self.not_ready, {"Retry-After": "1"})
        self._pass_time()
        if self.samples + samples > self.max_samples:
            return self._queue_full(f"the limit is {self.max_samples}")
        if self.samples >= FEW_SAMPLES and self._drain_s() > self.max_wait_s:
            return self._queue_full(f"they take longer than {self.max_wait_s:g} s")
        return None

    def _queue_full(self, limit: str) -> QueueFull:
        wait_s = self.retry_after_s()
        return QueueFull(
            f"{self.samples} samples are in flight, and {limit}; try again in {wait_s} s",
            {"Retry-After": str(wait_s)},
        )

    def release(self, samples: int) -> None:
        """Count samples as answered, whatever the answer."""
        self._pass_time()
        self.samples -= samples
        self._answered += samples
        self._inflight.set(self.samples)

    def retry_after_s(self) -> int:
        """Return the seconds until the queue has drained at the recent rate, 1 to 60."""
        self._pass_time()
        return min(max(math.ceil(self._drain_s()), 1), 60)

    def _drain_s(self) -> float:
        """Seconds until the samples in flight are answered at the recent rate; 0 if unknown."""
        is_known = self._answered >= ENOUGH_ANSWERS or self._busy_s >= ENOUGH_BUSY_S
        if not is_known or not self._answered:
            return 0.0
        return self.samples * self._busy_s / self._answered

    def _pass_time(self) -> None:
        now = self._clock()
        if self.samples:
            fade = math.exp(-(now - self._last_s) / RATE_MEMORY_S)
            self._answered *= fade
            self._busy_s = self._busy_s * fade + (now - self._last_s)
        self._last_s = now
