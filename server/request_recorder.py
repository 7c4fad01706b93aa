"""What is kept of every answered request: a line of the access log, and spans."""

import time
from collections.abc import Callable

from server.access_log import AccessLog, is_probe
from server.metrics import ROUTES
from server.request_context import UNANSWERED, RequestContext
from server.trace_context import Headers
from server.trace_records import RequestTrace
from server.tracing import Tracer

OTHER = "other"  # a path that no route has: clients choose it, so it is no name to group by


class RequestRecorder:
    """Follows requests from their headers to their answers.

    Args:
        access_log: Writes lines; None: there is no access log.
        tracer: Gives requests their places in traces.
        clock: Seconds, monotonic; shared by all processes of the host.

    Attributes:
        is_on: Whether anything is done with answered requests.
        traces: Whether requests may begin traces.
    """

    def __init__(
        self,
        access_log: AccessLog | None = None,
        tracer: Tracer | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._access_log, self._tracer, self._clock = access_log, tracer or Tracer(), clock
        self.traces = self._tracer.records
        self.is_on = self.traces or access_log is not None

    def start_trace(self, headers: Headers) -> RequestTrace | None:
        """Return a request's place in a trace; None if it is in none."""
        return self._tracer.start(headers)

    def begin(
        self, headers: Headers, request_id: str, method: str, path: str, received_s: float
    ) -> RequestContext:
        """Follow a request; arguments as of `RequestContext`, and its headers."""
        trace = None if self.traces and is_probe(path) else self._tracer.start(headers)
        return RequestContext(request_id, trace, method, path, received_s)

    def end(self, request: RequestContext) -> None:
        """Note that a request has been answered, or that its client has left."""
        if not self.is_on or request.status == UNANSWERED or is_probe(request.path):
            return
        route = request.route or (request.path if request.path in ROUTES else OTHER)
        if self._access_log is not None:
            self._access_log.note(request, route, self._clock())
        if request.trace is not None and request.trace.recorded:
            self._tracer.record(request.trace, request, route)
