"""Around every request: id, time of arrival, gate and body limit, and clients that leave."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from types import TracebackType

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import INTERNAL_DETAIL, BodyTooLarge, ServeError
from server.gate import Gate
from server.hot_route import CLIENT_LEFT, REQUEST_ID
from server.inflate import inflated
from server.prediction_paths import route_label, takes_samples
from server.problems import problem_response
from server.refusals import RefusalLog
from server.request_context import RequestContext, current_request
from server.request_recorder import RequestRecorder

log = logging.getLogger(__name__)

SMALL_BODY_BYTES = 64 * 1024  # for routes that take no images
# Routes that take milliseconds: many at once would keep predictions and probes from the loop.
ONE_AT_A_TIME = frozenset({"/metrics", "/budget", "/frontier", "/audit", "/openapi.json"})
PATIENCE_S = 0.1


class RequestMiddleware:
    """Gives every request an id and a time of arrival, lets it pass, and counts it.

    Args:
        app: Answers the request.
        refusals: Records refusals; its counts count every response.
        max_body_bytes: The largest body of a prediction request.
        clock: Seconds, monotonic; the one the models use.
        gate: The listener's; default: one that is open.
        recorder: Follows requests; default: one that keeps nothing of them.
    """

    def __init__(
        self,
        app: ASGIApp,
        refusals: RefusalLog,
        max_body_bytes: int,
        clock: Callable[[], float] = time.perf_counter,
        gate: Gate | None = None,
        recorder: RequestRecorder | None = None,
    ) -> None:
        self.app = app
        self.refusals, self.counts = refusals, refusals.counts
        self.max_body_bytes = max_body_bytes
        self.clock = clock
        self.gate = gate or Gate()
        self.recorder = recorder or RequestRecorder()
        self._turn = Turn()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, _without_known_traces(send))
            return
        received_s, method = self.clock(), scope["method"]
        if method == "HEAD":  # as GET; the server sends no body all the same
            scope = {**scope, "method": "GET"}
        headers = Headers(scope=scope)
        wanted = headers.get("x-request-id", "")
        request_id = wanted if REQUEST_ID.fullmatch(wanted) else os.urandom(16).hex()
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "received_s": received_s, "server_timing": {}}
        request = self.recorder.begin(
            scope["headers"], request_id, method, scope["path"], received_s
        )
        current = current_request.set(request)
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                times = {"total": (self.clock() - received_s) * 1e3, **state["server_timing"]}
                timing = ", ".join([f"{name};dur={ms:.3f}" for name, ms in times.items()])
                timing += "" if request.trace is None else request.trace.timing
                request.status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"server-timing", timing.encode()),
                    *self.gate.cors_headers(scope),
                ]
                if self.gate.closing:
                    message["headers"].append((b"connection", b"close"))
                self.counts.observe_request(route_label(scope["path"]), message["status"])
            await watch.send(message)

        watch = ClientWatch(receive, send)
        try:
            if (allowed := self.gate.preflight(scope)) is not None:
                await Response(None, 204, allowed)(scope, receive, send_with_headers)
                return
            state["owner"] = self.gate.enter(scope)
            has_samples = takes_samples(scope["path"])
            limit = self.max_body_bytes if has_samples else SMALL_BODY_BYTES
            if int(headers.get("content-length", 0)) > limit:
                raise self._too_large(limit)
            one = scope["method"] == "GET" and scope["path"] in ONE_AT_A_TIME
            encodings = headers.getlist("content-encoding")
            bounded = self._bounded(watch.receive, limit)
            with inflated(scope, encodings, bounded) as receive_body:
                if encodings:
                    receive_body = self._bounded(receive_body, limit)
                async with watch, self._turn if one else contextlib.nullcontext():
                    await self.app(scope, receive_body, send_with_headers)
        except ServeError as error:
            self.refusals.record_if_refusal(error)
            await problem_response(
                error.status, error.code, error.detail, request_id, error.headers
            )(scope, receive, send_with_headers)
        except ClientDisconnect:
            self._count_departure(request)
        except asyncio.CancelledError:
            if watch.left:
                if not started:
                    self._count_departure(request)
                return
            if started:  # the drain time at shutdown is over
                raise
            sentence = "the server is draining and had no time left for this request"
            answer = problem_response(503, "not_ready", sentence, request_id)
            await answer(scope, receive, send_with_headers)
        except Exception:
            log.exception("request %s failed", request_id)
            if not started:
                await problem_response(500, "internal", INTERNAL_DETAIL, request_id)(
                    scope, receive, send_with_headers
                )
        finally:
            current_request.reset(current)
            request.route = request.route or getattr(scope.get("route"), "path", None)
            self.recorder.end(request)

    def _count_departure(self, request: RequestContext) -> None:
        log.debug("request %s: the client left", request.request_id)
        request.status = CLIENT_LEFT
        self.counts.observe_request(route_label(request.path), CLIENT_LEFT)

    def _bounded(self, receive: Receive, limit: int) -> Receive:
        """Count the body as it arrives: a chunked one announces no length."""
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise self._too_large(limit)
            return message

        return bounded

    def _too_large(self, limit: int) -> ServeError:
        error = BodyTooLarge(
            f"the body is larger than the limit of {limit} bytes; send less at once"
        )
        self.refusals.record_error(error)
        return error


class Turn:
    """Lets one request in at a time, and none for as long again as it took, twice over.

    So such requests get a third of the event loop at most, however many there are.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._begun_s = 0.0

    async def __aenter__(self) -> None:
        await self._lock.acquire()
        self._begun_s = asyncio.get_running_loop().time()

    async def __aexit__(self, *error: object) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(2 * (loop.time() - self._begun_s), self._lock.release)


class ClientWatch:
    """Cancels the task that answers a request once its client has disconnected.

    Most answers are out before it would look: it watches only requests that are still unanswered
    `patience_s` after their body was read.

    Args:
        receive: The request's.
        send: The request's.
        patience_s: How long to wait before watching for a disconnect.
    """

    def __init__(self, receive: Receive, send: Send, patience_s: float = PATIENCE_S) -> None:
        self.left = False
        self._receive = receive
        self._send = send
        self._patience_s = patience_s
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._answered = False

    async def __aenter__(self) -> "ClientWatch":
        task = asyncio.current_task()
        assert task is not None, "requests are answered by tasks"
        self._task = task
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._answered = True
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    async def receive(self) -> Message:
        """Return the request's next message; start watching once the body is complete."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._patience_s, self._begin)
        return message

    async def send(self, message: Message) -> None:
        """Send a message; after the last one, a disconnect is no departure."""
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._answered = True
        await self._send(message)

    def _begin(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._answered:
            self.left = True
            self._task.cancel()


def _without_known_traces(send: Send) -> Send:
    """Report a startup ValueError as its message, without the traceback."""

    async def plainly(message: Message) -> None:
        if message["type"] == "lifespan.startup.failed":
            kind, _, sentence = message["message"].rstrip().rpartition("\n")[2].partition(": ")
            if kind in ("ValueError", "models.bundle.BundleError"):
                message = {**message, "message": sentence}
        await send(message)

    return plainly
