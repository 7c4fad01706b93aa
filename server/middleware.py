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
from server.problems import problem_response
from server.refusals import RefusalLog

log = logging.getLogger(__name__)

SMALL_BODY_BYTES = 64 * 1024  # for routes that take no images
ALIASES = {"/health": "/readyz", "/healthz": "/readyz", "/ping": "/readyz"}
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
    """

    def __init__(
        self,
        app: ASGIApp,
        refusals: RefusalLog,
        max_body_bytes: int,
        clock: Callable[[], float] = time.perf_counter,
        gate: Gate | None = None,
    ) -> None:
        self.app = app
        self.refusals, self.counts = refusals, refusals.counts
        self.max_body_bytes = max_body_bytes
        self.clock = clock
        self.gate = gate or Gate()
        self._turn = Turn()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, _without_known_traces(send))
            return
        received_s = self.clock()
        if scope["method"] == "HEAD":  # as GET; the server sends no body all the same
            scope = {**scope, "method": "GET"}
        headers = Headers(scope=scope)
        wanted = headers.get("x-request-id", "")
        request_id = wanted if REQUEST_ID.fullmatch(wanted) else os.urandom(16).hex()
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "received_s": received_s, "server_timing": {}}
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                times = {"total": (self.clock() - received_s) * 1e3, **state["server_timing"]}
                timing = ", ".join([f"{name};dur={ms:.3f}" for name, ms in times.items()])
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"server-timing", timing.encode()),
                    *self.gate.cors_headers(scope),
                ]
                if self.gate.closing:
                    message["headers"].append((b"connection", b"close"))
                path: str = scope["path"]
                self.counts.observe_request(ALIASES.get(path, path), message["status"])
            await watch.send(message)

        watch = ClientWatch(receive, send)
        try:
            if (allowed := self.gate.preflight(scope)) is not None:
                await Response(None, 204, allowed)(scope, receive, send_with_headers)
                return
            state["owner"] = self.gate.enter(scope)
            limit = self.max_body_bytes if scope["path"] == "/predict" else SMALL_BODY_BYTES
            if int(headers.get("content-length", 0)) > limit:
                raise self._too_large(limit)
            one = scope["method"] == "GET" and scope["path"] in ONE_AT_A_TIME
            async with watch, self._turn if one else contextlib.nullcontext():
                await self.app(scope, self._bounded(watch.receive, limit), send_with_headers)
        except ServeError as error:
            self.refusals.record_if_refusal(error)
            await problem_response(
                error.status, error.code, error.detail, request_id, error.headers
            )(scope, receive, send_with_headers)
        except ClientDisconnect:
            self._count_departure(scope, request_id)
        except asyncio.CancelledError:
            if watch.left:
                if not started:
                    self._count_departure(scope, request_id)
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

    def _count_departure(self, scope: Scope, request_id: str) -> None:
        log.debug("request %s: the client left", request_id)
        self.counts.observe_request(scope["path"], CLIENT_LEFT)

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
