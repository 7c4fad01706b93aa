"""Sends spans to a collector from a thread of its own, so that no request ever waits for one."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from server.trace_records import RequestRecord
from server.trace_settings import TraceSettings

log = logging.getLogger(__name__)

ABORT_S = 0.2  # for an export that was cancelled


class Exporter(Protocol):
    """Makes spans of records and sends them."""

    def export(self, records: Sequence[RequestRecord]) -> bool:
        """Send the spans of requests; return whether the collector has taken them. May block."""

    def shutdown(self) -> None:
        """Let an export that goes on fail soon; another thread may call."""


class SpanCounts(Protocol):
    """Counts spans, for metrics; any thread may call."""

    def count_spans(self, outcome: str, count: int) -> None:
        """Count spans that were exported or lost."""


class SpanSender:
    """Keeps records until a batch of spans is full or the oldest has waited for some time.

    What finds no room, and what the collector does not take, is lost and counted.

    Args:
        settings: Bounds of what waits.
        make_exporter: Makes the exporter when sending starts: its libraries take a while to load.
        counts: Counts spans.
    """

    def __init__(
        self, settings: TraceSettings, make_exporter: Callable[[], Exporter], counts: SpanCounts
    ) -> None:
        self._settings, self._make_exporter, self._counts = settings, make_exporter, counts
        self._changed = threading.Condition()  # guards the next three
        self._waiting: deque[RequestRecord] = deque()
        self._spans = 0  # of those that wait
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._exporter: Exporter | None = None

    def start(self) -> None:
        """Start the thread."""
        self._exporter = self._make_exporter()
        self._thread.start()

    def send(self, record: RequestRecord) -> None:
        """Let a request's spans be sent, or lose them if too many wait. Never blocks."""
        size = record.num_spans
        with self._changed:
            if self._ends or self._spans + size > self._settings.most_waiting:
                self._counts.count_spans("lost", size)
                return
            self._waiting.append(record)
            self._spans += size
            if self._spans >= self._settings.batch:
                self._changed.notify()

    def stop(self, timeout_s: float) -> None:
        """Send what waits for at most so long, and lose the rest; blocks."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        if self._exporter is None:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._exporter.shutdown()
            self._thread.join(ABORT_S)
        with self._changed:
            lost, self._spans = self._spans, 0
            self._waiting.clear()
        if lost:
            self._counts.count_spans("lost", lost)
            log.warning("%d spans are lost: the collector did not take them in time", lost)

    def _run(self) -> None:
        while records := self._next_batch():
            self._export(records)

    def _next_batch(self) -> list[RequestRecord]:
        """Wait for records whose spans make a batch; none once sending ends and nothing waits."""
        with self._changed:
            while True:
                is_full = self._changed.wait_for(self._is_due, self._settings.delay_s)
                if self._waiting or (is_full and self._ends):
                    return self._take_batch()

    def _is_due(self) -> bool:
        return self._ends or self._spans >= self._settings.batch

    def _take_batch(self) -> list[RequestRecord]:
        """Take requests up to the size of a batch, and at least one: a request is not divided."""
        taken: list[RequestRecord] = []
        size = 0
        while self._waiting:
            more = self._waiting[0].num_spans
            if taken and size + more > self._settings.batch:
                break
            taken.append(self._waiting.popleft())
            size += more
        self._spans -= size
        return taken

    def _export(self, records: Sequence[RequestRecord]) -> None:
        assert self._exporter is not None, "the thread starts after the exporter"
        exported = False
        try:
            exported = self._exporter.export(records)
        except Exception:  # A bug, or an answer that the library cannot read: lose these spans.
            log.exception("spans could not be exported")
        outcome = "exported" if exported else "lost"
        self._counts.count_spans(outcome, sum([each.num_spans for each in records]))
