"""What a process that answers HTTP keeps of requests, by its settings."""

import importlib.util
import logging
from collections.abc import Callable

from server.access_log import AccessLog
from server.request_recorder import RequestRecorder
from server.settings import Settings
from server.span_sender import Exporter, SpanCounts, SpanSender
from server.trace_records import RequestRecord
from server.trace_settings import TraceSettings
from server.tracing import Sampler, Tracer

log = logging.getLogger(__name__)

PACKAGES = "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"


def make_recorder(
    settings: Settings,
    sampler: Sampler | None = None,
    emit: Callable[[RequestRecord], None] = lambda record: None,
    front_end: int = 0,
) -> RequestRecorder:
    """Make what follows the requests of a process.

    Args:
        settings: The server's.
        sampler: Chooses the traces that are recorded; None: nothing is.
        emit: Takes the records.
        front_end: Which process this is.
    """
    access_log = AccessLog(settings.access_log) if settings.access_log else None
    return RequestRecorder(access_log, Tracer(sampler, emit, front_end))


def make_sender(traces: TraceSettings | None, counts: SpanCounts) -> SpanSender | None:
    """Make what sends spans to a collector; None if nothing asks for it, or the extra is missing.

    Args:
        traces: What the environment asks for.
        counts: Counts spans.
    """
    if traces is None:
        return None
    if not _is_installed():
        log.warning(
            "traces are asked for by OTEL_* variables, and the packages that send them are not "
            "installed; install eenet-serve[otel], or set OTEL_TRACES_EXPORTER=none"
        )
        return None
    return SpanSender(traces, _make_exporter, counts)


def _is_installed() -> bool:
    try:
        return all(importlib.util.find_spec(name) is not None for name in PACKAGES)
    except ModuleNotFoundError:  # of a package around one of them
        return False


def _make_exporter() -> Exporter:
    from server.otel import SpanExport

    return SpanExport()
