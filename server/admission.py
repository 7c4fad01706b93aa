"""Admission: a bound on the samples in flight, and when to retry."""

import math
import time
from collections.abc import Callable

from prometheus_client import Gauge

from server.errors import NotReady, QueueFull

RATE_MEMORY_S = 10.0


class Admission:
    """Counts the samples in flight; used from the event loop only.

    Args:
        max_samples: Most samples in flight.
        inflight: Gauge of the count.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, max_samples: int, inflight: Gauge, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.max_samples = max_samples
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
            QueueFull: If they would exceed the bound; Retry-After estimates when the queue will
                have drained.
        """
        if self.not_ready is not None:
            raise NotReady(self.not_ready, {"Retry-After": "1"})
        if self.samples + samples > self.max_samples:
            wait_s = self.retry_after_s()
            raise QueueFull(
                f"{self.samples} samples are in flight, and the limit is {self.max_samples}; try "
                f"again in {wait_s} s",
                {"Retry-After": str(wait_s)},
            )
        self._pass_time()
        self.samples += samples
        self._inflight.set(self.samples)

    def release(self, samples: int) -> None:
        """Count samples as answered, whatever the answer."""
        self._pass_time()
        self.samples -= samples
        self._answered += samples
        self._inflight.set(self.samples)

    def retry_after_s(self) -> int:
        """Return the seconds until the queue has drained at the recent rate, 1 to 60."""
        self._pass_time()
        if not self._answered:
            return 1
        return min(max(math.ceil(self.samples * self._busy_s / self._answered), 1), 60)

    def _pass_time(self) -> None:
        now = self._clock()
        if self.samples:
            fade = math.exp(-(now - self._last_s) / RATE_MEMORY_S)
            self._answered *= fade
            self._busy_s = self._busy_s * fade + (now - self._last_s)
        self._last_s = now
