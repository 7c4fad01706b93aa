import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from server.span_sender import SpanSender
from server.trace_records import RequestRecord, RequestTrace, SampleRecord
from server.trace_settings import TraceSettings


class Counts:
    def __init__(self) -> None:
        self.spans = Counter[str]()

    def count_spans(self, outcome: str, count: int) -> None:
        self.spans[outcome] += count


class FakeExporter:
    """Takes batches once it may, and fails if it should."""

    def __init__(self, *, takes: bool = True) -> None:
        self.batches: list[list[str]] = []
        self.takes = takes
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.is_shut_down = False

    def export(self, records: Sequence[RequestRecord]) -> bool:
        self.may_go_on.wait(10)
        if self.is_shut_down:
            return False
        self.batches.append([each.request_id for each in records])
        return self.takes

    def shutdown(self) -> None:
        self.is_shut_down = True
        self.may_go_on.set()


def record(name: str, spans: int = 1) -> RequestRecord:
    trace = RequestTrace("1" * 32, "2" * 16, None, 1, "", True)
    samples = [SampleRecord(name, "pets", 0, 1.0, 1.0, [])] * (spans - 1)
    return RequestRecord(trace, "POST", "/", "/", 200, name, 0.0, 1.0, 0.0, 0, samples, 1)


def sender_of(
    exporter: FakeExporter, *, waiting: int = 10, batch: int = 4, delay_s: float = 5.0
) -> tuple[SpanSender, Counts]:
    counts = Counts()
    settings = TraceSettings(most_waiting=waiting, batch=batch, delay_s=delay_s)
    sender = SpanSender(settings, lambda: exporter, counts)
    sender.start()
    return sender, counts


def until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def test_a_full_batch_goes_at_once_and_the_rest_at_the_end() -> None:
    exporter = FakeExporter()
    sender, counts = sender_of(exporter)
    for name in "abcde":
        sender.send(record(name))
    until(lambda: len(exporter.batches) == 1)
    assert exporter.batches == [list("abcd")]
    sender.stop(5)
    assert exporter.batches == [list("abcd"), ["e"]]
    assert counts.spans == {"exported": 5}


def test_what_waits_for_long_enough_goes() -> None:
    exporter = FakeExporter()
    sender, _ = sender_of(exporter, delay_s=0.01)
    sender.send(record("a"))
    until(lambda: exporter.batches == [["a"]])
    sender.stop(5)


def test_a_request_is_not_divided_however_many_spans_it_has() -> None:
    exporter = FakeExporter()
    sender, counts = sender_of(exporter)
    sender.send(record("a"))
    sender.send(record("b", 6))
    sender.stop(5)
    assert exporter.batches == [["a"], ["b"]]
    assert counts.spans == {"exported": 7}


def test_what_finds_no_room_is_lost_and_nobody_waits() -> None:
    exporter = FakeExporter()
    exporter.may_go_on.clear()
    sender, counts = sender_of(exporter, waiting=8, batch=4)
    for name in range(4):
        sender.send(record(str(name)))
    until(lambda: not sender._waiting)  # the thread has them, and hangs
    started_s = time.perf_counter()
    for name in range(100):
        sender.send(record(str(name)))
    assert time.perf_counter() - started_s < 0.5
    assert counts.spans == {"lost": 92}
    exporter.may_go_on.set()
    sender.stop(5)
    assert counts.spans == {"lost": 92, "exported": 12}


def test_what_the_collector_does_not_take_is_lost() -> None:
    exporter = FakeExporter(takes=False)
    sender, counts = sender_of(exporter)
    sender.send(record("a", 3))
    sender.stop(5)
    assert counts.spans == {"lost": 3}


def test_an_exporter_that_raises_loses_its_batch_alone(caplog: pytest.LogCaptureFixture) -> None:
    exporter = FakeExporter()
    sender, counts = sender_of(exporter, batch=1)
    take = exporter.export
    exporter.export = lambda records: 1 / 0  # type: ignore[assignment,return-value]
    sender.send(record("a"))
    until(lambda: counts.spans["lost"] == 1)
    exporter.export = take  # type: ignore[method-assign]
    sender.send(record("b"))
    sender.stop(5)
    assert counts.spans == {"lost": 1, "exported": 1}
    assert "spans could not be exported" in caplog.text


def test_the_end_is_bounded_and_what_waits_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    exporter = FakeExporter()
    exporter.may_go_on.clear()
    sender, counts = sender_of(exporter, batch=2)
    for name in "abc":
        sender.send(record(name))
    started_s = time.perf_counter()
    sender.stop(0.05)
    assert time.perf_counter() - started_s < 1
    assert counts.spans == {"lost": 3}
    sender.send(record("d"))
    assert counts.spans == {"lost": 4}


def test_one_that_never_started_ends_at_once() -> None:
    sender = SpanSender(TraceSettings(), FakeExporter, Counts())
    sender.stop(5)
