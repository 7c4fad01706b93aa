"""What a front-end counts, until control has it."""

from collections import Counter
from typing import Any

from prometheus_client import Gauge

from server.processes.timings import pack_records
from server.processes.wire import Message
from server.trace_records import RequestRecord

MOST_RECORDS = 1024  # of requests, between two reports to control


class FrontCounts:
    """Counts requests and refusals in place of `Metrics`, which only control has.

    Attributes:
        inflight: Samples admitted and not yet answered.
        loop_lag_s: How late the event loop's latest beat was.
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
        }


class SpanBuffer:
    """Keeps records of traced requests until control has them."""

    def __init__(self) -> None:
        self._records: list[RequestRecord] = []
        self._lost = 0

    @property
    def has_news(self) -> bool:
        """Whether anything was recorded since the last `take`."""
        return bool(self._records)

    def add(self, record: RequestRecord) -> None:
        """Keep a record, or lose its spans if there is no room."""
        if len(self._records) < MOST_RECORDS:
            self._records.append(record)
        else:
            self._lost += record.num_spans

    def take(self) -> Message:
        """Return what was recorded since the last call."""
        message = pack_records(self._records, self._lost)
        self._records, self._lost = [], 0
        return message
