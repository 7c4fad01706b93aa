import logging
import time

import pytest

from server.engine.request import StageTiming
from server.otel import OncePerPeriod, SpanExport
from server.trace_records import RequestRecord, RequestTrace, SampleRecord
from tests.collector import Span, collecting

TRACE, SPAN, OWN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "1" * 16


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)


def record(parent: str | None = SPAN, status: int = 200, **fields: object) -> RequestRecord:
    trace = RequestTrace(TRACE, OWN, parent, 1, "a=1", True)
    stages = [StageTiming(0, 10.1, 10.2, 10.3, 4), StageTiming(1, 10.3, 10.4, 10.5, 2)]
    sample = SampleRecord("id", "pets", 1, 10.1, 50.0, stages)
    whole = RequestRecord(
        trace, "POST", "/predict", "/predict", status, "id", 10.0, 10.6, 1e9, 3, [sample], 1
    )
    return whole._replace(**fields)


def export(monkeypatch: pytest.MonkeyPatch, *records: RequestRecord) -> list[Span]:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        exporter = SpanExport()
        assert exporter.export(records)
        exporter.shutdown()
        return collector.spans


def test_a_request_is_a_span_with_its_parts_below(monkeypatch: pytest.MonkeyPatch) -> None:
    request, *parts = export(monkeypatch, record())
    assert (request.name, request.kind, request.state) == ("POST /predict", 2, "a=1")
    assert (request.trace_id, request.span_id, request.parent_id) == (TRACE, OWN, SPAN)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "url.path": "/predict",
        "http.response.status_code": 200,
        "eenet.request_id": "id",
        "eenet.front_end": 3,
        "eenet.model": "pets",
        "eenet.samples": 1,
        "eenet.exit": 1,
    }
    assert [each.name for each in parts] == ["decode", "queue", "stage 0", "queue", "stage 1"]
    assert {(each.trace_id, each.parent_id, each.kind) for each in parts} == {(TRACE, OWN, 1)}
    assert len({each.span_id for each in (request, *parts)}) == 6


def test_times_are_those_of_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = export(monkeypatch, record())
    times = [((s.start_ns / 1e9 - 1e9), (s.end_ns / 1e9 - 1e9)) for s in spans]
    expected = [(10.0, 10.6), (10.05, 10.1), (10.1, 10.2), (10.2, 10.3), (10.3, 10.4), (10.4, 10.5)]
    for (start, end), (right_start, right_end) in zip(times, expected, strict=True):
        assert start == pytest.approx(right_start, abs=1e-5)
        assert end == pytest.approx(right_end, abs=1e-5)


def test_stages_tell_batch_and_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = {each.name: each.attributes for each in export(monkeypatch, record())}
    common = {"eenet.request_id": "id", "eenet.model": "pets"}
    assert spans["stage 0"] == {**common, "eenet.stage": 0, "eenet.batch_size": 4}
    assert spans["stage 1"] == {
        **common, "eenet.stage": 1, "eenet.batch_size": 2, "eenet.exit": 1,
    }  # fmt: skip


def test_errors_of_the_server_are_marked_and_those_of_clients_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed, refused = export(
        monkeypatch,
        record(None, 500, samples=[], num_samples=0),
        record(None, 422, samples=[], num_samples=0),
    )
    assert failed.failed and failed.attributes["error.type"] == "500"
    assert not refused.failed and "error.type" not in refused.attributes
    assert failed.parent_id == "" and "eenet.model" not in failed.attributes


def test_the_service_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    (span,) = export(monkeypatch, record(samples=[]))
    assert span.resource["service.name"] == "eenet-serve" and span.resource["service.version"]
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    (span,) = export(monkeypatch, record(samples=[]))
    assert span.resource["service.name"] == "mine"
    assert span.resource["deployment.environment.name"] == "test"


def test_headers_of_the_environment_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret")
        assert SpanExport().export([record()])
        assert collector.headers[0]["x-key"] == "secret"


def test_a_collector_that_refuses_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        collector.status = 400
        assert not SpanExport().export([record()])


def test_a_collector_that_is_gone_is_a_failure_and_shutdown_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    exporter = SpanExport()
    exporter.shutdown()
    started_s = time.perf_counter()
    assert not exporter.export([record()])
    assert time.perf_counter() - started_s < 1


def test_of_many_lines_one_passes_in_a_time() -> None:
    now_s = 0.0
    lines = OncePerPeriod(60, lambda: now_s)
    line = logging.makeLogRecord({})
    assert [lines.filter(line) for _ in range(3)] == [True, False, False]
    now_s = 60.0
    assert lines.filter(line) and not lines.filter(line)
