import re
import time

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text

from server.exposition import metrics_text
from server.histogram import HistogramFamily
from server.metrics import Metrics, ModelMetrics
from server.process_metrics import ProcessCollector, ProcessName


@pytest.fixture
def registry() -> CollectorRegistry:
    """Every kind of metric of the server, with values that are hard to write."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, "1.0", by_version=True)
    for name, version in (("cat", "1"), ("cat", 'a"b\\c\nd'), ("Ä", "2")):
        model = ModelMetrics(metrics, name, version, 3)
        model.show_policy("stopping", "cpu", "int8")
        model.show_queues([1, 2, 3_000_000], float("inf"))
        model.show_feedback([None, 1 / 3, 1e-9])
        model.request_latency.observe(np.array([1e-4, 0.3, 99.0]))
    metrics.observe_request("/predict", 200, 12_345_678)
    registry.register(ProcessCollector(lambda: {ProcessName("server", 0): 1}))
    Gauge("plain", 'Says "what"\nand \\ why.', registry=registry).set(-2.5)
    Counter("counted", "Counts.", registry=registry).inc()
    HistogramFamily("empty", "Nothing.", ["model"], (1.0,), registry)
    return registry


def without_creation(text: bytes) -> list[str]:
    """The lines of the client library, but for the times at which counters were made."""
    return [line for line in text.decode().splitlines() if not re.search(r"_created[ {]", line)]


def test_text_is_that_of_the_client_library(registry: CollectorRegistry) -> None:
    assert metrics_text(registry).decode().splitlines() == without_creation(
        generate_latest(registry)
    )


def test_openmetrics_is_that_of_the_client_library(registry: CollectorRegistry) -> None:
    assert metrics_text(registry, openmetrics=True).decode().splitlines() == without_creation(
        openmetrics_text(registry)  # type: ignore[no-untyped-call]
    )


def test_the_series_of_a_model_disappear_with_it() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, "1.0", by_version=True)
    before = metrics_text(registry)
    for version in ("1", "2"):
        ModelMetrics(metrics, "cat", version, 3).show_policy("stopping", "cpu", "int8")
    metrics.remove_model("cat", "1")
    text = metrics_text(registry).decode()
    assert 'version="1"' not in text and 'model="cat",version="2"' in text
    metrics.remove_model("cat", "2")
    assert metrics_text(registry) == before
    metrics.remove_model("dog", "1")


def test_twenty_models_are_written_in_a_part_of_fifty_milliseconds() -> None:
    metrics = Metrics(CollectorRegistry(), "1.0")
    for number in range(20):
        ModelMetrics(metrics, f"cat-{number}", "1", 3)
    metrics_text(metrics.registry)

    def took_s() -> float:
        started_s = time.process_time()
        metrics_text(metrics.registry)
        return time.process_time() - started_s

    assert min(took_s() for _ in range(5)) < 0.03


def test_a_model_that_is_replaced_keeps_its_series() -> None:
    metrics = Metrics(CollectorRegistry(), "1.0")
    old, new = (ModelMetrics(metrics, "cat", "1", 3) for _ in range(2))
    old.show_policy("stopping", "cpu", "int8")
    new.show_policy("stopping", "cpu", "float32")
    new.count_cancelled(1)
    old.remove(is_replaced=True)
    text = metrics_text(metrics.registry).decode()
    assert 'precision="int8"' not in text and 'precision="float32"' in text
    assert 'eenet_cancelled_total{model="cat"} 1.0' in text
