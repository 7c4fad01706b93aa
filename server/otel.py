"""OpenTelemetry's spans of recorded requests, sent by OTLP over HTTP.

Needs the extra `otel`, and is imported only where traces are asked for. Endpoint, headers,
compression, certificates and timeouts come from the variables OTEL_EXPORTER_OTLP_*, the resource
from OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES; the libraries read them.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.util.types import AttributeValue

from server import __version__
from server.trace_records import RequestRecord, RequestTrace, SampleRecord

SERVICE = "eenet-serve"
UNNAMED = "unknown_service"  # what the library calls a service without a name
EXPORTER_LOGGER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
QUIET_S = 60.0
Attributes = dict[str, AttributeValue]


class SpanExport:
    """Makes spans of recorded requests and sends them; an `Exporter`.

    Args:
        exporter: Sends spans; default: by OTLP over HTTP.
        rng: Draws the ids of spans within requests.
    """

    def __init__(
        self, exporter: SpanExporter | None = None, rng: random.Random | None = None
    ) -> None:
        logger = logging.getLogger(EXPORTER_LOGGER)
        if not any(isinstance(each, OncePerPeriod) for each in logger.filters):
            logger.addFilter(OncePerPeriod(QUIET_S))
        self._exporter = exporter or OTLPSpanExporter()
        self._rng = rng or random.Random()
        self._resource = _resource()
        self._scope = InstrumentationScope(SERVICE, __version__)

    def export(self, records: Sequence[RequestRecord]) -> bool:
        """Send the spans of requests; return whether the collector has taken them."""
        spans = [span for record in records for span in self._spans(record)]
        return self._exporter.export(spans) is SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Let an export that waits for another try fail at once."""
        self._exporter.shutdown()

    def _spans(self, record: RequestRecord) -> Iterator[ReadableSpan]:
        """Yield the span of a request, then those of its decoding, its queues and stages."""
        trace = record.trace
        own = _context(trace, trace.span_id)
        yield self._request_span(record, own)
        for sample in record.samples:
            for name, started_s, ended_s, attributes in _parts(sample):
                yield ReadableSpan(
                    name,
                    _context(trace, f"{self._rng.getrandbits(64) or 1:016x}"),
                    own,
                    self._resource,
                    {"eenet.request_id": sample.request_id, **attributes},
                    start_time=_epoch_ns(record, started_s),
                    end_time=_epoch_ns(record, ended_s),
                    instrumentation_scope=self._scope,
                )

    def _request_span(self, record: RequestRecord, own: SpanContext) -> ReadableSpan:
        parent = None
        if record.trace.parent_id is not None:
            parent = _context(record.trace, record.trace.parent_id, is_remote=True)
        failed = record.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return ReadableSpan(
            f"{record.method} {record.route}",
            own,
            parent,
            self._resource,
            _request_attributes(record),
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=_epoch_ns(record, record.started_s),
            end_time=_epoch_ns(record, record.ended_s),
            instrumentation_scope=self._scope,
        )


def _request_attributes(record: RequestRecord) -> Attributes:
    """Attributes by the semantic conventions for HTTP servers, and our own."""
    attributes: Attributes = {
        "http.request.method": record.method,
        "http.route": record.route,
        "url.path": record.path,
        "http.response.status_code": record.status,
        "eenet.request_id": record.request_id,
        "eenet.front_end": record.front_end,
    }
    if record.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        attributes["error.type"] = str(record.status)
    if record.samples:
        attributes["eenet.model"] = record.samples[0].model
        attributes["eenet.samples"] = record.num_samples
    exits = [each.exit for each in record.samples if each.exit is not None]
    if record.num_samples == len(exits) == 1:
        attributes["eenet.exit"] = exits[0]
    return attributes


def _parts(sample: SampleRecord) -> Iterator[tuple[str, float, float, Attributes]]:
    """Yield name, start, end and attributes of the spans within one sample."""
    if sample.decode_ms is not None:
        yield "decode", sample.decoded_s - sample.decode_ms / 1e3, sample.decoded_s, {}
    for timing in sample.stages:
        about: Attributes = {"eenet.model": sample.model, "eenet.stage": timing.stage}
        yield "queue", timing.ready_s, timing.started_s, about
        about = {**about, "eenet.batch_size": timing.rows}
        if timing is sample.stages[-1] and sample.exit is not None:
            about["eenet.exit"] = sample.exit
        yield f"stage {timing.stage}", timing.started_s, timing.ended_s, about


def _context(trace: RequestTrace, span_id: str, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(
        int(trace.trace_id, 16),
        int(span_id, 16),
        is_remote,
        TraceFlags(trace.flags),
        TraceState.from_header([trace.state]) if trace.state else None,
    )


def _epoch_ns(record: RequestRecord, time_s: float) -> int:
    return int((record.epoch_s + time_s) * 1e9)


def _resource() -> Resource:
    """The server, as the environment describes it; by default named after this program."""
    found = Resource.create({"service.version": __version__})
    if str(found.attributes.get(SERVICE_NAME, UNNAMED)).startswith(UNNAMED):
        found = found.merge(Resource({SERVICE_NAME: SERVICE}))
    return found


class OncePerPeriod(logging.Filter):
    """Lets one line pass in a time: the library has several for every batch that it cannot send.

    Args:
        period_s: The time.
        clock: Seconds, monotonic.
    """

    def __init__(self, period_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._period_s, self._clock = period_s, clock
        self._next_s = clock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line passes."""
        now_s = self._clock()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._period_s
        return True
