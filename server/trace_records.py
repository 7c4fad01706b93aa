"""What is recorded of a traced request, in the process that answered it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from server.engine.request import InferenceRequest, Prediction, StageTiming
from server.trace_context import SAMPLED

MOST_SAMPLES = 32  # of one list, whose stages are recorded


class RequestTrace(NamedTuple):
    """A request's place in a trace.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: Of the span that the server records of the request, 16 hexadecimal digits.
        parent_id: Of the client's span; None if the trace begins here.
        flags: SAMPLED and RANDOM.
        state: As in `TraceContext`.
        recorded: Whether the server records spans.
    """

    trace_id: str
    span_id: str
    parent_id: str | None
    flags: int
    state: str
    recorded: bool

    @property
    def sampled_id(self) -> str | None:
        """The trace's id if anybody records it."""
        return self.trace_id if self.flags & SAMPLED else None

    @property
    def timing(self) -> str:
        """What `Server-Timing` says of it, behind other entries; "" unless it is recorded."""
        if not self.recorded:
            return ""
        return f', traceparent;desc="00-{self.trace_id}-{self.span_id}-{self.flags:02x}"'


class SampleRecord(NamedTuple):
    """One sample of a request; times on the clock of the host's processes.

    Attributes:
        request_id: Its own, in a list followed by its place.
        model: The model that answered.
        exit: Exit that it left at; None if it failed.
        decoded_s: When its bytes had become arrays.
        decode_ms: What that took; None if it failed before.
        stages: Those that it went through.
    """

    request_id: str
    model: str
    exit: int | None
    decoded_s: float
    decode_ms: float | None
    stages: list[StageTiming]


class RequestRecord(NamedTuple):
    """One request of which spans are made; JSON can hold it.

    Attributes:
        trace: Its place in the trace.
        method: Of HTTP.
        path: As the client sent it, without the query.
        route: Template of the path.
        status: The answer's.
        request_id: Its own.
        started_s: When its headers had arrived, on the clock of the host's processes.
        ended_s: When the answer was out.
        epoch_s: Seconds since the epoch at zero of that clock.
        front_end: Which process answered.
        samples: Those of a list up to `MOST_SAMPLES`.
        num_samples: Number of all.
    """

    trace: RequestTrace
    method: str
    path: str
    route: str
    status: int
    request_id: str
    started_s: float
    ended_s: float
    epoch_s: float
    front_end: int
    samples: list[SampleRecord]
    num_samples: int

    @property
    def num_spans(self) -> int:
        """Number of spans that are made of it: of itself, of decodings, of queues and stages."""
        inside = [(each.decode_ms is not None) + 2 * len(each.stages) for each in self.samples]
        return 1 + sum(inside)


def sample_of(model: str, request: InferenceRequest) -> SampleRecord:
    """Return what is recorded of a sample that a model has answered, or has failed to."""
    result = request.result
    return SampleRecord(
        request.request_id or "",
        model,
        result.exit if isinstance(result, Prediction) else None,
        request.decoded_s,
        request.decode_ms,
        request.timings or [],
    )


def record_of(fields: Sequence[Any]) -> RequestRecord:
    """Return the record that JSON held."""
    record = RequestRecord(*fields)
    samples = [SampleRecord(*each) for each in record.samples]
    return record._replace(
        trace=RequestTrace(*record.trace),
        samples=[
            each._replace(stages=[StageTiming(*stage) for stage in each.stages]) for each in samples
        ],
    )
