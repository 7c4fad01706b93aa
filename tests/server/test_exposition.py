import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from starlette.testclient import TestClient

from server.exposition import choose_format, render
from server.histogram import HistogramFamily
from server.metrics import Metrics, ModelMetrics
from server.process_metrics import ProcessCollector, ProcessName
from server.reports import Answers, Exemplar

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN = "text/plain; version=1.0.0; charset=utf-8"
PLAIN_0_0_4 = "text/plain; version=0.0.4; charset=utf-8"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/*", PLAIN),
        ("text/html, */*;q=0.1", PLAIN),
        ("application/json", PLAIN),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; Version=1.0.0", OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
         OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        ("text/plain, application/openmetrics-text", OPENMETRICS),
        ("text/plain;q=0.9, application/openmetrics-text;q=0.8", PLAIN),
        ("text/plain;version=0.0.4, application/openmetrics-text;q=0.8", PLAIN_0_0_4),
        ("application/openmetrics-text;q=0", PLAIN),
        ("application/openmetrics-text;q=0.000, text/plain;q=0.001", PLAIN),
        ("application/openmetrics-text;version=2.0.0, text/plain;version=0.0.4", PLAIN_0_0_4),
        ("application/openmetrics-text;q=much, text/plain;q=0.1", PLAIN),
        ('application/openmetrics-text; version="1.0.0"; q=0.5', OPENMETRICS),
        ("application/*", OPENMETRICS),
        (",;,=;q", PLAIN),
    ],
)  # fmt: skip
def test_the_format_is_what_is_most_welcome(accept: str, media_type: str) -> None:
    assert choose_format(accept).media_type == media_type


@given(st.text(max_size=60))
def test_no_accept_header_is_an_error(accept: str) -> None:
    assert choose_format(accept).media_type in (OPENMETRICS, PLAIN, PLAIN_0_0_4)


@pytest.fixture
def registry() -> CollectorRegistry:
    """Of metrics that have all counted something."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, "1")
    model = ModelMetrics(metrics, 'pe"t\\s\n', "1", 3)
    ms = np.array([0.05, 3.0, 20_000.0])
    ones = np.ones(3, np.int64)
    exemplars = [Exemplar(1, "a" * 32, [(0, 1.5), (1, 1.5)]), Exemplar(2, "b" * 32, [])]
    model.count_answers(Answers(ones, ones, ones, ms, ms, ms, ms * np.nan, ones > 0, exemplars))
    metrics.observe_request("/predict", 200)
    metrics.show_restarts({"engine": 1})
    metrics.show_loop_lag(ProcessName("engine", 0), 0.25)
    registry.register(ProcessCollector(lambda: {ProcessName("server", 0): 1}))
    return registry


def test_the_official_parser_reads_openmetrics(registry: CollectorRegistry) -> None:
    body, media_type = render(registry, PROMETHEUS_3)
    text = body.decode()
    families = {each.name: each for each in parse_openmetrics(text)}
    assert media_type == OPENMETRICS and text.endswith("\n# EOF\n")
    assert text.count("# EOF") == 1
    assert {s.name for s in families["eenet_requests"].samples} == {"eenet_requests_total"}
    lag = families["eenet_event_loop_lag_seconds"].samples
    assert [(s.labels, s.value) for s in lag] == [({"role": "engine", "index": "0"}, 0.25)]


@pytest.mark.parametrize("accept", ["", PROMETHEUS_3])
def test_creation_times_are_left_out(registry: CollectorRegistry, accept: str) -> None:
    body, _ = render(registry, accept)
    assert b"_created" not in body and b"eenet_requests_total{" in body


def test_plain_text_has_no_exemplars(registry: CollectorRegistry) -> None:
    text = render(registry, "")[0].decode()
    assert " # {" not in text and "# EOF" not in text
    assert any(each.name == "eenet_request_latency_seconds" for each in parse_plain(text))


def test_histograms_name_traces(registry: CollectorRegistry) -> None:
    text = render(registry, PROMETHEUS_3)[0].decode()
    found = {
        (family.name, sample.labels["le"]): sample.exemplar
        for family in parse_openmetrics(text)
        for sample in family.samples
        if sample.exemplar is not None
    }
    names = {name.removeprefix("eenet_").removesuffix("_latency_seconds") for name, _ in found}
    assert names == {"request", "compute", "queue", "stage"}
    slow = found["eenet_request_latency_seconds", "+Inf"]
    assert (
        slow.labels == {"trace_id": "b" * 32} and slow.value == 20.0 and float(slow.timestamp) > 1e9
    )
    for (_, bound), exemplar in found.items():
        assert exemplar.value <= float(bound)


@pytest.mark.parametrize("accept", [PROMETHEUS_3, ""])
def test_the_server_speaks_both(client: TestClient, accept: str) -> None:
    response = client.get("/metrics", headers={"accept": accept})
    parse = parse_openmetrics if accept else parse_plain
    families = {each.name: each for each in parse(response.text)}
    assert response.headers["content-type"] == (OPENMETRICS if accept else PLAIN)
    lag = families["eenet_event_loop_lag_seconds"].samples
    assert [each.labels for each in lag] in ([], [{"role": "server", "index": "0"}])
    for name in ("resident_memory_bytes", "virtual_memory_bytes", "open_fds", "max_fds", "threads"):
        (sample,) = families[f"process_{name}"].samples
        assert sample.labels == {"role": "server", "index": "0"}
    assert "_created" not in response.text


def test_several_accept_headers_are_one(client: TestClient) -> None:
    request = client.build_request("GET", "/metrics")
    fields = [(b"accept", b"text/plain;q=0.1"), (b"accept", b"application/openmetrics-text")]
    request.headers = type(request.headers)([(b"host", b"testserver"), *fields])
    assert client.send(request).headers["content-type"] == OPENMETRICS


@pytest.fixture
def many_kinds() -> CollectorRegistry:
    """Every kind of metric of the server, with values that are hard to write."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, "1.0", by_version=True)
    for name, version in (("cat", "1"), ("cat", 'a"b\\c\nd'), ("Ä", "2")):
        model = ModelMetrics(metrics, name, version, 3)
        model.show_policy("stopping", "cpu", "int8")
        model.show_queues([1, 2, 3_000_000], float("inf"))
        model.show_feedback([None, 1 / 3, 1e-9])
        model.request_latency.observe(np.array([1e-4, 0.3, 99.0]))
        model.request_latency.note_exemplar(0.3, "a" * 32)
        model.request_latency.note_exemplar(99.0, 'b"\\\n')
    metrics.observe_request("/predict", 200, 12_345_678)
    registry.register(ProcessCollector(lambda: {ProcessName("server", 0): 1}))
    Gauge("plain", 'Says "what"\nand \\ why.', registry=registry).set(-2.5)
    Counter("counted", "Counts.", registry=registry).inc()
    HistogramFamily("empty", "Nothing.", ["model"], (1.0,), registry)
    return registry


def text_of(registry: CollectorRegistry, accept: str = "") -> str:
    return render(registry, accept)[0].decode()


def lines(registry: CollectorRegistry, accept: str) -> list[str]:
    return text_of(registry, accept).splitlines()


def without_creation(text: bytes) -> list[str]:
    """The lines of the client library, but for the times at which counters were made."""
    return [line for line in text.decode().splitlines() if not re.search(r"_created[ {]", line)]


def test_text_is_that_of_the_client_library(many_kinds: CollectorRegistry) -> None:
    assert lines(many_kinds, "") == without_creation(generate_latest(many_kinds))


def test_openmetrics_is_that_of_the_client_library(many_kinds: CollectorRegistry) -> None:
    assert lines(many_kinds, OPENMETRICS) == without_creation(
        openmetrics_text(many_kinds)  # type: ignore[no-untyped-call]
    )


def test_the_series_of_a_model_disappear_with_it() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, "1.0", by_version=True)
    before = text_of(registry)
    for version in ("1", "2"):
        ModelMetrics(metrics, "cat", version, 3).show_policy("stopping", "cpu", "int8")
    metrics.remove_model("cat", "1")
    text = text_of(registry)
    assert 'version="1"' not in text and 'model="cat",version="2"' in text
    metrics.remove_model("cat", "2")
    assert text_of(registry) == before
    metrics.remove_model("dog", "1")


def test_twenty_models_are_written_in_a_part_of_fifty_milliseconds() -> None:
    metrics = Metrics(CollectorRegistry(), "1.0")
    for number in range(20):
        ModelMetrics(metrics, f"cat-{number}", "1", 3)
    text_of(metrics.registry)

    def took_s() -> float:
        started_s = time.process_time()
        text_of(metrics.registry)
        return time.process_time() - started_s

    assert min(took_s() for _ in range(5)) < 0.03


def test_a_model_that_is_replaced_keeps_its_series() -> None:
    metrics = Metrics(CollectorRegistry(), "1.0")
    old, new = (ModelMetrics(metrics, "cat", "1", 3) for _ in range(2))
    old.show_policy("stopping", "cpu", "int8")
    new.show_policy("stopping", "cpu", "float32")
    new.count_cancelled(1)
    old.remove(is_replaced=True)
    text = text_of(metrics.registry)
    assert 'precision="int8"' not in text and 'precision="float32"' in text
    assert 'eenet_cancelled_total{model="cat"} 1.0' in text
