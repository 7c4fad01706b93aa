"""The request that a task answers, for whatever the task calls: logs, and what is recorded."""

from contextvars import ContextVar
from dataclasses import dataclass, field

from server.engine.request import InferenceRequest
from server.trace_records import RequestTrace

UNANSWERED = 0  # in place of a status


@dataclass(slots=True)
class RequestContext:
    """One HTTP request, from its head to its answer.

    Attributes:
        request_id: Its id.
        trace: Its place in a trace; None if it is in none.
        method: Of HTTP.
        path: Below the root path, without the query.
        received_s: When its headers had arrived.
        route: Template of the path, once a router has found it.
        status: The answer's, once it has begun.
        samples: Those that were sent to engines, each with the name of its model.
    """

    request_id: str
    trace: RequestTrace | None = None
    method: str = ""
    path: str = ""
    received_s: float = 0.0
    route: str | None = None
    status: int = UNANSWERED
    samples: list[tuple[str, InferenceRequest]] = field(default_factory=list)


current_request: ContextVar[RequestContext | None] = ContextVar("current_request", default=None)
"""The request that the running task answers; None elsewhere, as on the hot route."""
