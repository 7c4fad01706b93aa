import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Reference
from prometheus_client.exposition import generate_latest

from server.histogram import HistogramFamily
from server.metrics import LATENCY_BUCKETS

BOUNDS = (0.1, 0.25, 1.0, 4.0)
values = st.lists(st.floats(0, 10) | st.sampled_from(BOUNDS), max_size=20)


def text_of(registry: CollectorRegistry) -> list[str]:
    """All lines but those of creation times, which ours has not."""
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line and "_sum" not in line]


@given(st.lists(st.tuples(st.sampled_from("ab"), values), max_size=6))
def test_it_shows_what_the_client_librarys_histogram_shows(
    observed: list[tuple[str, list[float]]],
) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    family = HistogramFamily("x_seconds", "What.", ["model"], BOUNDS, ours)
    reference = Reference("x_seconds", "What.", ["model"], buckets=BOUNDS, registry=theirs)
    for model, each in observed:
        family.labels(model).observe(np.array(each, np.float64))
        for value in each or ():
            reference.labels(model).observe(value)
        reference.labels(model)
        total = reference.labels(model)._sum.get()
        assert family.labels(model).sum == pytest.approx(total)
    assert text_of(ours) == text_of(theirs)


def test_bounds_are_written_alike() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    HistogramFamily("x", "What.", ["model"], LATENCY_BUCKETS, ours).labels("a")
    Reference("x", "What.", ["model"], buckets=LATENCY_BUCKETS, registry=theirs).labels("a")
    assert text_of(ours) == text_of(theirs)


def test_a_name_is_registered_once() -> None:
    registry = CollectorRegistry()
    HistogramFamily("x", "What.", ["model"], BOUNDS, registry)
    with pytest.raises(ValueError, match="Duplicated"):
        HistogramFamily("x", "What.", ["model"], BOUNDS, registry)
