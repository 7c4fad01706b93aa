import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from starlette.testclient import TestClient

from server.exposition import choose_format, render
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
    model = ModelMetrics(metrics, 'pe"t\\s\n', 3)
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
