"""A collector of OpenTelemetry's spans: a small HTTP server in this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Span(NamedTuple):
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    state: str
    start_ns: int
    end_ns: int
    failed: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Collector:
    """Takes what is sent to /v1/traces, as long as `status` is 200."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: list[dict[str, str]] = []
        self.spans: list[Span] = []
        self._changed = threading.Condition()

    url = ""

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        with self._changed:
            self.headers.append(headers)
            if path != "/v1/traces":
                return 404
            if self.status == 200:
                self.spans += spans_of(body)
            self._changed.notify_all()
            return self.status

    def wait(self, count: int, timeout_s: float = 10) -> list[Span]:
        """Wait until as many spans have come; return all."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.spans) >= count, timeout_s)
            return list(self.spans)


def spans_of(body: bytes) -> Iterator[Span]:
    for part in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = values_of(part.resource.attributes)
        for scope in part.scope_spans:
            for span in scope.spans:
                yield Span(
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.kind,
                    span.trace_state,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code == 2,
                    values_of(span.attributes),
                    resource,
                )


def values_of(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = collector.take(self.path, dict(self.headers), body)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
