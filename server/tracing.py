"""Traces of requests: which are recorded, and what is recorded of them.

No part of OpenTelemetry is needed here. `server/otel.py` makes spans of what this records.
"""

import random
import time
from collections.abc import Callable
from typing import NamedTuple

from server.request_context import RequestContext
from server.trace_context import RANDOM, SAMPLED, Headers, TraceContext, read_trace_context
from server.trace_records import MOST_SAMPLES, RequestRecord, RequestTrace, sample_of

MOST_PATH = 256  # characters


class Sampler(NamedTuple):
    """Chooses the traces to record, as OpenTelemetry's samplers of these names do.

    Attributes:
        follows_parent: Whether the client decides, if the request is part of its trace.
        share: Of all other traces, 0 to 1.
    """

    follows_parent: bool = True
    share: float = 1.0

    def samples(self, trace_id: str, parent: TraceContext | None) -> bool:
        """Whether a trace is recorded."""
        if parent is not None and self.follows_parent:
            return parent.sampled
        return int(trace_id[16:], 16) < round(self.share * 2**64)


class Tracer:
    """Gives requests their places in traces.

    Args:
        sampler: Chooses the traces that are recorded; None: nothing is.
        emit: Takes the records.
        front_end: Which process this is.
        rng: Draws ids.
        clock: Seconds, monotonic; shared by all processes of the host.
        wall_clock: Seconds since the epoch.

    Attributes:
        records: Whether anything is recorded.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        emit: Callable[[RequestRecord], None] = lambda record: None,
        front_end: int = 0,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.perf_counter,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.records = sampler is not None
        self._sampler, self._emit, self._front_end = sampler, emit, front_end
        self._rng = (
            rng or random.Random()
        )  # seeded by the system; drawing from it has no system call
        self._clock, self._wall_clock = clock, wall_clock

    def start(self, headers: Headers) -> RequestTrace | None:
        """Return a request's place in a trace; None if neither client nor server has one.

        Args:
            headers: The request's, with names in lower case.
        """
        parent = read_trace_context(headers)
        if self._sampler is None:
            return (
                None
                if parent is None
                else RequestTrace(
                    parent.trace_id, parent.span_id, None, parent.flags, parent.state, False
                )
            )
        trace_id = self._draw_id(128) if parent is None else parent.trace_id
        sampled = self._sampler.samples(trace_id, parent)
        random_bit = RANDOM if parent is None else parent.flags & RANDOM
        return RequestTrace(
            trace_id,
            self._draw_id(64),
            None if parent is None else parent.span_id,
            random_bit | SAMPLED * sampled,
            "" if parent is None else parent.state,
            sampled,
        )

    def record(self, trace: RequestTrace, request: RequestContext, route: str) -> None:
        """Record a request that has been answered.

        Args:
            trace: Its place in a trace, which is recorded.
            request: The request.
            route: Template of its path.
        """
        now_s = self._clock()
        self._emit(
            RequestRecord(
                trace,
                request.method,
                request.path[:MOST_PATH],
                route,
                request.status,
                request.request_id,
                request.received_s,
                now_s,
                self._wall_clock() - now_s,
                self._front_end,
                [sample_of(model, each) for model, each in request.samples[:MOST_SAMPLES]],
                len(request.samples),
            )
        )

    def _draw_id(self, bits: int) -> str:
        """Draw an id, which must not be zero."""
        return f"{self._rng.getrandbits(bits) or 1:0{bits // 4}x}"
