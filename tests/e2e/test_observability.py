"""Logs, traces and metrics of real servers, with a collector of spans beside them."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.collector import Collector, Span, collecting
from tests.e2e.conftest import free_port

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
JPEG = {"content-type": "image/jpeg"}
OPENMETRICS = {"accept": "application/openmetrics-text"}
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARTS = {"decode", "queue", "stage 0"}


class Observed(NamedTuple):
    server: Server
    collector: Collector
    log: Path

    def lines(self, **wanted: Any) -> list[dict[str, Any]]:
        """The log lines that have these fields."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if wanted.items() <= line.items()]

    def access(self, request_id: str) -> dict[str, Any]:
        """The line of the access log about a request, which comes after the answer."""
        deadline_s = time.monotonic() + 5
        while not (found := self.lines(logger="eenet.access", request_id=request_id)):
            assert time.monotonic() < deadline_s, "no such line"
            time.sleep(0.01)
        (line,) = found
        return line

    def spans(self, trace_id: str, count: int) -> list[Span]:
        """The spans of a trace, once there are as many."""
        deadline_s = time.monotonic() + 10
        while True:
            found = [each for each in self.collector.wait(0) if each.trace_id == trace_id]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline_s, found
            time.sleep(0.02)


@pytest.fixture(scope="module")
def observed(
    start_server: Callable[..., AbstractContextManager[Server]],
    shipped_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Observed]:
    log = tmp_path_factory.mktemp("observed") / "log"
    with collecting() as collector, ExitStack() as stack:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=hidden-from-logs",
            "OTEL_BSP_SCHEDULE_DELAY": "20",
        }
        options = ("--log-format", "json", "--access-log", "1", "--log-level", "info")
        stderr = stack.enter_context(log.open("wb"))
        with changed_environ(variables):
            server = stack.enter_context(
                start_server("--bundle", str(shipped_bundle), *options, stderr=stderr)
            )
        yield Observed(server, collector, log)


@contextmanager
def changed_environ(variables: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def traced(number: int, flags: str = "01") -> dict[str, str]:
    """Headers of a request that is part of a client's trace, one for each number."""
    return {"traceparent": f"00-{TRACE[:-4]}{number:04x}-{SPAN}-{flags}", "tracestate": "a=1"}


def trace_of(number: int) -> str:
    return f"{TRACE[:-4]}{number:04x}"


def test_a_prediction_of_the_hot_route(observed: Observed, images: Images) -> None:
    asked_ns = time.time_ns()
    headers = {**JPEG, **traced(1), "x-request-id": "hot-1"}
    answer = observed.server.client.post("/predict", content=images.files[0], headers=headers)
    body = answer.json()
    stages = body["exit"] + 1
    spans = observed.spans(trace_of(1), 2 + 2 * stages)
    (request,) = [each for each in spans if each.name == "POST /predict"]
    assert (request.parent_id, request.kind, request.state) == (SPAN, 2, "a=1")
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["eenet.request_id"] == "hot-1"
    assert request.attributes["eenet.exit"] == body["exit"]
    assert request.resource["service.name"] == "eenet-serve"
    assert f"00-{trace_of(1)}-{request.span_id}-01" in answer.headers["server-timing"]
    parts = [each for each in spans if each is not request]
    assert {each.parent_id for each in parts} == {request.span_id}
    names = sorted(each.name for each in parts)
    assert names == sorted(["decode", *["queue"] * stages, *[f"stage {k}" for k in range(stages)]])
    (last,) = [each for each in parts if each.name == f"stage {body['exit']}"]
    assert last.attributes["eenet.exit"] == body["exit"]
    assert last.attributes["eenet.batch_size"] >= 1
    for part in parts:
        assert request.start_ns - 1e6 <= part.start_ns <= part.end_ns <= request.end_ns + 1e6
    took_ms = sum(s.end_ns - s.start_ns for s in parts if s.name.startswith("stage")) / 1e6
    assert took_ms == pytest.approx(body["latency_ms"]["compute"], abs=0.1)
    assert asked_ns - 50e6 < request.start_ns < time.time_ns()
    line = observed.access("hot-1")
    assert line["trace_id"] == trace_of(1) and line["exit"] == body["exit"]
    assert (line["method"], line["route"], line["status"]) == ("POST", "/predict", 200)
    assert line["model"] == body["model"] and 0 < line["duration_ms"] < 10_000
    assert line["role"] in ("server", "front-end") and line["index"] == 0


def test_lists_and_forms_are_traced_too(observed: Observed, images: Images) -> None:
    import base64

    encoded = [base64.b64encode(file).decode() for file in images.files[:3]]
    client = observed.server.client
    answer = client.post("/predict", json={"images": encoded}, headers=traced(2))
    exits = [each["exit"] for each in answer.json()["predictions"]]
    spans = observed.spans(trace_of(2), 1 + sum(1 + 2 * (exit + 1) for exit in exits))
    items = {each.attributes["eenet.request_id"] for each in spans if each.name == "decode"}
    assert items == {f"{answer.headers['x-request-id']}/{place}" for place in range(3)}
    (request,) = [each for each in spans if each.name == "POST /predict"]
    assert request.attributes["eenet.samples"] == 3 and "eenet.exit" not in request.attributes
    form = client.post("/predict", files={"file": images.files[0]}, headers=traced(3))
    assert form.status_code == 200 and "traceparent;desc" in form.headers["server-timing"]
    assert PARTS <= {each.name for each in observed.spans(trace_of(3), 4)}
    assert observed.access(answer.headers["x-request-id"])["samples"] == 3


def test_refusals_and_other_routes_are_traced(observed: Observed) -> None:
    client = observed.server.client
    bad = client.post("/predict", content=b"no image", headers={**JPEG, **traced(4)})
    assert bad.status_code == 422
    (span,) = observed.spans(trace_of(4), 1)
    assert span.attributes["http.response.status_code"] == 422 and not span.failed
    budget = client.get("/budget", params={"model": "nobody"}, headers=traced(5))
    assert budget.status_code == 404
    (span,) = observed.spans(trace_of(5), 1)
    assert (span.name, span.attributes["url.path"]) == ("GET /budget", "/budget")
    client.get("/nowhere/secret", headers=traced(6))
    (span,) = observed.spans(trace_of(6), 1)
    assert (span.name, span.attributes["http.route"]) == ("GET other", "other")
    assert observed.access(budget.headers["x-request-id"])["route"] == "/budget"
    assert observed.access(bad.headers["x-request-id"])["status"] == 422
    many = {f"x-{number}": "1" for number in range(200)}
    huge = client.post("/predict", content=b"", headers=many)
    assert huge.status_code == 431
    line = observed.access(huge.headers["x-request-id"])
    assert (line["method"], line["route"], line["status"]) == ("POST", "/predict", 431)


def test_the_clients_decision_holds_and_a_malformed_trace_is_a_new_one(
    observed: Observed, images: Images
) -> None:
    client = observed.server.client
    unsampled = client.post(
        "/predict", content=images.files[0], headers={**JPEG, **traced(7, "00")}
    )
    assert "traceparent" not in unsampled.headers["server-timing"]
    assert observed.access(unsampled.headers["x-request-id"])["trace_id"] == trace_of(7)
    malformed = {**JPEG, "traceparent": f"00-{trace_of(8).upper()}-{SPAN}-01"}
    answer = client.post("/predict", content=images.files[0], headers=malformed)
    trace_id = observed.access(answer.headers["x-request-id"])["trace_id"]
    spans = observed.spans(trace_id, 4)
    assert {s.parent_id for s in spans if s.name == "POST /predict"} == {""}
    assert trace_of(7) not in {each.trace_id for each in observed.collector.wait(0)}


def test_probes_leave_neither_lines_nor_spans(observed: Observed) -> None:
    client = observed.server.client
    for path in ("/livez", "/readyz", "/health", "/healthz", "/ping", "/metrics"):
        client.get(path, headers=traced(9))
    client.head("/livez")
    client.get("/budget", headers={**traced(10), "x-request-id": "last"})
    observed.access("last")
    observed.spans(trace_of(10), 1)
    routes = {line["route"] for line in observed.lines(logger="eenet.access")}
    assert routes <= {"/predict", "/budget", "other"}
    assert trace_of(9) not in {each.trace_id for each in observed.collector.wait(0)}


def test_no_text_of_a_request_breaks_a_line_and_no_secret_is_in_one(observed: Observed) -> None:
    client = observed.server.client
    forged = '%0a{"level":"critical","message":"forged"}%0d%e2%80%a8'
    client.get(f"/{forged}", headers={"x-request-id": "forged\t1"})
    client.post("/predict", json={"text": "a", "model": '\n{"forged": 1}\n'})
    answer = client.get("/budget", headers={"authorization": "Bearer abcdefgh"})
    observed.access(answer.headers["x-request-id"])
    text = observed.log.read_text()
    for line in text.splitlines():
        parsed = json.loads(line)
        assert {"time", "level", "logger", "message", "role", "index"} <= parsed.keys()
        assert parsed["message"] != "forged"
    assert "hidden-from-logs" not in text and "abcdefgh" not in text


def test_every_process_says_who_it_is(observed: Observed) -> None:
    roles = {(line["role"], line["index"]) for line in observed.lines()}
    if len(observed.server.pids) == 1:
        assert roles == {("server", 0)}
    else:
        assert roles >= {("control", 0), ("front-end", 0)}


def test_metrics_count_spans_and_name_traces(observed: Observed, images: Images) -> None:
    client = observed.server.client
    for number in range(20, 40):
        headers = {**JPEG, **traced(number)}
        client.post("/predict", content=images.files[0], headers=headers)
    observed.spans(trace_of(39), 4)
    text = client.get("/metrics", headers=OPENMETRICS).text
    families = {each.name: each for each in text_string_to_metric_families(text)}
    exemplars = {
        name: [s.exemplar for s in family.samples if s.exemplar is not None]
        for name, family in families.items()
        if family.type == "histogram" and name.endswith("_latency_seconds")
    }
    assert len(exemplars) == 5 and all(exemplars.values()), exemplars
    for found in exemplars.values():
        assert TRACE[:-4] in {each.labels["trace_id"][:28] for each in found}
    spans = {s.labels["outcome"]: s.value for s in families["eenet_spans"].samples}
    assert spans["exported"] >= 80 and spans["lost"] == 0
    lag = families["eenet_event_loop_lag_seconds"].samples
    roles = {(each.labels["role"], each.labels["index"]) for each in lag}
    several = {("control", "0"), ("front-end", "0"), ("engine", "0")}
    one_process = len(observed.server.pids) == 1
    assert roles == {("server", "0")} if one_process else roles >= several


def test_a_dead_collector_loses_spans_and_nothing_else(
    start_server: Callable[..., AbstractContextManager[Server]],
    shipped_bundle: Path,
    images: Images,
    tmp_path: Path,
) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "OTEL_BSP_SCHEDULE_DELAY": "10",
        "OTEL_BSP_MAX_QUEUE_SIZE": "16",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    with (tmp_path / "log").open("wb") as stderr, changed_environ(variables):
        with start_server("--bundle", str(shipped_bundle), stderr=stderr) as server:
            for _ in range(30):
                answer = server.client.post("/predict", content=images.files[0], headers=JPEG)
                assert answer.status_code == 200
            deadline_s = time.monotonic() + 10
            while not lost(server) > 16:
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            server.process.send_signal(signal.SIGTERM)
            started_s = time.monotonic()
            assert server.process.wait(20) == 0
            assert time.monotonic() - started_s < 9
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) < 20 and any("spans batch" in line for line in lines), lines


def lost(server: Server) -> float:
    found = re.search(
        r'eenet_spans_total{outcome="lost"} (\S+)', server.client.get("/metrics").text
    )
    assert found is not None
    return float(found[1])
