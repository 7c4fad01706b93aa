"""Answers that come exit by exit: the events of one sample, and server-sent events on the wire.

A route chooses what its events hold. It turns what `watch_exits` yields into events and hands them
to `start_stream`, which waits for the first one. So a refusal before it is an ordinary answer with
its own status.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, NamedTuple

import pydantic_core
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from server.engine.request import ExitTrace, InferenceRequest, Prediction
from server.errors import INTERNAL_DETAIL, InferenceFailed, NotReady, ServeError
from server.front import Front, FrontModel
from server.problems import problem

log = logging.getLogger(__name__)

OnDone = Callable[[InferenceRequest], None]
OnExit = Callable[[ExitTrace], None]
Begin = Callable[[OnDone, OnExit], InferenceRequest]

EVENT_STREAM = "text/event-stream"
HEADERS = {
    "content-type": EVENT_STREAM,
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx would keep the events until there are many
}
LAST_EVENT_S = 0.1  # for a client to take an error when the time to drain is over
NO_TIME_LEFT = "the server is draining and had no time left for the rest of this stream"


class Event(NamedTuple):
    """One event.

    Attributes:
        name: Its kind, such as `exit`.
        fields: Its data, which JSON can hold.
    """

    name: str
    fields: Mapping[str, Any]


async def watch_exits(
    front: Front, model: FrontModel, begin: Begin, *, keeps_trace: bool
) -> AsyncGenerator[ExitTrace | InferenceRequest]:
    """Answer one sample; yield the output of each exit as it happens, then the answered request.

    A client that reads slowly holds no place among the samples in flight once its sample is
    answered. What waits for it is at most one output per exit. Closing the generator cancels the
    sample.

    Args:
        front: Limits the samples in flight.
        model: Answers.
        begin: Begins the sample, given the `on_done` and `on_exit` of `Dispatcher.begin`.
        keeps_trace: Whether the answered request has its trace, too.

    Raises:
        ServeError: As `Dispatcher.infer`, or if too many samples are in flight.
    """
    passed: asyncio.Queue[ExitTrace | InferenceRequest] = asyncio.Queue()
    is_answered = False

    def end(answered: InferenceRequest) -> None:
        nonlocal is_answered
        is_answered = True
        front.admission.release(1)
        passed.put_nowait(answered)

    front.admission.admit(1)
    begun: InferenceRequest | None = None
    try:
        begun = begin(end, passed.put_nowait)
        shown: list[ExitTrace] = []
        while isinstance(each := await passed.get(), ExitTrace):
            if each.exit == len(shown):  # an engine that began again repeats the first ones
                shown.append(each)
                yield each
        result, each.result = each.result, None
        if isinstance(result, ServeError):
            try:
                raise result
            finally:
                del result  # its traceback holds this frame: leave no cycle
        assert isinstance(result, Prediction), "answered requests have a result"
        each.result = result._replace(trace=shown if keeps_trace else None)
        yield each
    finally:
        if not is_answered:
            if begun is not None:
                model.dispatcher.cancel(begun)
            front.admission.release(1)


async def start_stream(request: Request, events: AsyncGenerator[Event]) -> Response:
    """Wait for the first event; return the answer that sends it and all others.

    Args:
        request: The HTTP request, behind the middleware.
        events: The last one holds the prediction. The answer closes the generator.

    Raises:
        ServeError: If there is no first event.
    """
    return EventStream(request, await anext(events), events)


class EventStream(Response):
    """An answer that is a stream of server-sent events.

    An error after the first event becomes the last event, `error`, which holds what the body of an
    ordinary answer would.

    Args:
        request: The HTTP request.
        first: The first event.
        others: Those behind it.
    """

    def __init__(self, request: Request, first: Event, others: AsyncGenerator[Event]) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._request, self._first, self._others = request, first, others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, each as soon as it is there."""
        async with contextlib.aclosing(self._others):
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            try:
                await send(start)
                await _send_event(send, self._first)
                async for event in self._others:
                    await _send_event(send, event)
            except asyncio.CancelledError:  # the client has left, or the time to drain is over
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAST_EVENT_S):
                        await _send_event(send, self._error(NotReady(NO_TIME_LEFT)))
                        await _end(send)
                return
            except ServeError as error:
                await _send_event(send, self._error(error))
            except Exception:
                log.exception("request %s failed", self._request.state.request_id)
                await _send_event(send, self._error(InferenceFailed(INTERNAL_DETAIL)))
            await _end(send)

    def _error(self, error: ServeError) -> Event:
        self._request.app.state.refusals.record_if_refusal(error)
        request_id: str = self._request.state.request_id
        return Event("error", problem(error.status, error.code, error.detail, request_id))


def encode_event(event: Event) -> bytes:
    """Return an event's bytes; JSON has no line ends, so the data is one line."""
    return b"event: %s\ndata: %s\n\n" % (event.name.encode(), pydantic_core.to_json(event.fields))


async def _send_event(send: Send, event: Event) -> None:
    await send({"type": "http.response.body", "body": encode_event(event), "more_body": True})


async def _end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"", "more_body": False})
