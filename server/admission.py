"""Who is let in: a bound on the samples in flight, and when to come back."""

import math
import time
from collections.abc import Callable

from prometheus_client import Gauge

from server.errors import NotReady, QueueFull

RATE_MEMORY_S = 10.0


class Admission:
    """Counts samples in flight; used from the event loop only.

    Args:
        max_samples: The bound.
        inflight: Shows the count.
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
        self._rate = 0.0  # samples a second, an average that fades over RATE_MEMORY_S
        self._last_s = clock()

    def admit(self, samples: int) -> None:
        """Let samples in.

        Raises:
            NotReady: While the server drains or is broken.
            QueueFull: If the bound would be passed; Retry-After tells when the queue will have
                drained.
        """
        if self.not_ready is not None:
            raise NotReady(self.not_ready, {"Retry-After": "1"})
        if self.samples + samples > self.max_samples:
            wait_s = self.retry_after_s()
            raise QueueFull(
                f"{self.samples} samples are in flight and {self.max_samples} is the most; try "
                f"again in {wait_s} s",
                {"Retry-After": str(wait_s)},
            )
        self.samples += samples
        self._inflight.set(self.samples)

    def release(self, samples: int) -> None:
        """Samples are answered, well or badly."""
        self.samples -= samples
        self._inflight.set(self.samples)
        now = self._clock()
        fade = math.exp(-(now - self._last_s) / RATE_MEMORY_S)
        self._rate = self._rate * fade + samples / RATE_MEMORY_S
        self._last_s = now

    def retry_after_s(self) -> int:
        """Whole seconds until what is in flight has drained at the recent rate, 1 to 60."""
        return min(max(math.ceil(self.samples / self._rate), 1), 60) if self._rate > 0 else 1
