"""What a front-end counts, until control has it."""

from collections import Counter
from typing import Any

from prometheus_client import Gauge


class FrontCounts:
    """Counts requests and refusals in place of `Metrics`, which only control has.

    Attributes:
        inflight: Samples admitted and not yet answered.
        loop_lag: How late the event loop's beat was, in seconds.
    """

    def __init__(self) -> None:
        self.inflight = Gauge("inflight", "Samples in flight.", registry=None)
        self.loop_lag_s = 0.0
        self._requests: Counter[tuple[str, int]] = Counter()
        self._rejected: Counter[str] = Counter()

    def observe_request(self, route: str, status: int) -> None:
        """Count one answered request."""
        self._requests[route, status] += 1

    def count_rejected(self, reason: str) -> None:
        """Count a request, or the samples of one, that was turned away."""
        self._rejected[reason] += 1

    @property
    def has_news(self) -> bool:
        """Whether anything was counted since the last `take`."""
        return bool(self._requests or self._rejected)

    def take(self, samples_in_flight: int) -> dict[str, Any]:
        """Return what was counted since the last call, as fields of a message."""
        requests, self._requests = self._requests, Counter()
        rejected, self._rejected = self._rejected, Counter()
        return {
            "requests": [(route, status, count) for (route, status), count in requests.items()],
            "rejected": list(rejected.items()),
            "inflight": samples_in_flight,
            "loop_lag_s": self.loop_lag_s,
        }
