import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from models.backend import HeadOutput
from server.engine.request import InferenceRequest, Prediction, StageTiming
from server.request_context import RequestContext
from server.trace_context import TraceContext
from server.trace_records import MOST_SAMPLES, RequestRecord, record_of
from server.tracing import Sampler, Tracer

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = [(b"traceparent", f"00-{TRACE}-{SPAN}-01".encode()), (b"tracestate", b"a=1")]
UNSAMPLED = [(b"traceparent", f"00-{TRACE}-{SPAN}-00".encode())]


def answered(exit: int = 0) -> InferenceRequest:
    output = HeadOutput(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32))
    result = Prediction(exit, output, 0, 1.0, 0.5, False, None)
    timings = [StageTiming(0, 10.0, 10.1, 10.2, 4)]
    return InferenceRequest(
        request_id="a", result=result, decode_ms=1.0, decoded_s=9.9, timings=timings
    )


@given(st.integers(1, 2**128 - 1), st.floats(0, 1))
def test_shares_are_drawn_as_the_official_sampler_does(trace_id: int, share: float) -> None:
    official = TraceIdRatioBased(share).should_sample(None, trace_id, "").decision
    ours = Sampler(False, share).samples(f"{trace_id:032x}", None)
    assert ours == (official is Decision.RECORD_AND_SAMPLE)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_client_decides_about_its_own_traces(share: float) -> None:
    for flags in (0, 1):
        parent = TraceContext(TRACE, SPAN, flags, "")
        assert Sampler(True, share).samples(TRACE, parent) == bool(flags)
        assert Sampler(False, share).samples(TRACE, parent) == bool(share)


def test_without_a_sampler_the_clients_trace_is_known_and_nothing_recorded() -> None:
    tracer = Tracer()
    assert not tracer.records and tracer.start([]) is None
    trace = tracer.start(SAMPLED)
    assert trace is not None and not trace.recorded and trace.timing == ""
    assert (trace.trace_id, trace.sampled_id) == (TRACE, TRACE)
    unsampled = tracer.start(UNSAMPLED)
    assert unsampled is not None and unsampled.sampled_id is None


def test_a_clients_trace_goes_on() -> None:
    trace = Tracer(Sampler(), rng=random.Random(0)).start(SAMPLED)
    assert trace is not None and trace.recorded
    assert (trace.trace_id, trace.parent_id, trace.state) == (TRACE, SPAN, "a=1")
    assert trace.span_id != SPAN and len(trace.span_id) == 16
    assert trace.timing == f', traceparent;desc="00-{TRACE}-{trace.span_id}-01"'


def test_a_trace_begins_here_without_a_good_header() -> None:
    tracer = Tracer(Sampler(), rng=random.Random(0))
    traces = [tracer.start(headers) for headers in ([], [(b"traceparent", b"00-0-0-01")])]
    for trace in traces:
        assert trace is not None and trace.recorded and trace.parent_id is None
        assert len(trace.trace_id) == 32 and trace.flags == 3
    assert traces[0] != traces[1]


def test_what_is_not_sampled_is_not_recorded() -> None:
    trace = Tracer(Sampler()).start(UNSAMPLED)
    assert trace is not None and not trace.recorded and trace.sampled_id is None


def test_a_record_survives_json_and_counts_its_spans() -> None:
    records: list[RequestRecord] = []
    tracer = Tracer(Sampler(), records.append, 2, clock=lambda: 11.0, wall_clock=lambda: 1011.0)
    trace = tracer.start(SAMPLED)
    assert trace is not None
    samples = [("pets", answered(exit=1)), ("pets", InferenceRequest(request_id="b"))]
    request = RequestContext("id", trace, "POST", "/x" * 500, 9.8, None, 200, samples)
    tracer.record(trace, request, "/predict")
    (record,) = records
    assert record_of(_through_json(record)) == record
    assert (record.front_end, record.epoch_s, record.ended_s) == (2, 1000.0, 11.0)
    assert [each.exit for each in record.samples] == [1, None]
    assert len(record.path) == 256
    assert record.num_spans == 1 + 1 + 2


def test_of_a_long_list_the_first_samples_are_recorded() -> None:
    records: list[RequestRecord] = []
    tracer = Tracer(Sampler(), records.append)
    trace = tracer.start([])
    assert trace is not None
    samples = [("pets", answered())] * 200
    tracer.record(trace, RequestContext("id", trace, samples=samples), "/predict")
    assert len(records[0].samples) == MOST_SAMPLES and records[0].num_samples == 200


def _through_json(record: RequestRecord) -> list[object]:
    import pydantic_core

    parsed: list[object] = pydantic_core.from_json(pydantic_core.to_json(record))
    return parsed
