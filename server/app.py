"""The ASGI app: routes, error answers, and what every answer carries."""

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable

import pydantic_core
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import __version__
from server.bodies import sentence_of
from server.errors import (
    INTERNAL_DETAIL,
    BodyTooLarge,
    InvalidContent,
    ServeError,
    problem,
)
from server.lifecycle import lifespan
from server.metrics import Metrics
from server.routes import audit, budget, feedback, health, predict, scheduler
from server.settings import Settings
from server.watch import ClientWatch

log = logging.getLogger(__name__)

SMALL_BODY_BYTES = 64 * 1024  # for routes that take no pictures
CLIENT_LEFT = 499
PROBLEM_TYPE = "application/problem+json"
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
ALIASES = {"/health": "/readyz", "/healthz": "/readyz", "/ping": "/readyz"}
HTTP_CODES = {400: "malformed", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def create_app(settings: Settings) -> FastAPI:
    """Build the app; models are loaded and threads started in its lifespan.

    Args:
        settings: The configuration.
    """
    app = _App(
        title="EENet Serve",
        version=__version__,
        summary="Multi-exit networks under a latency budget",
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.metrics = Metrics(CollectorRegistry(), __version__)
    app.include_router(predict.router)
    app.include_router(budget.router)
    app.include_router(audit.router)
    app.include_router(scheduler.router)
    app.include_router(feedback.router)
    app.include_router(health.router)
    app.add_exception_handler(ServeError, _known_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    around = {"metrics": app.state.metrics, "max_body_bytes": settings.max_body_mib * 2**20}
    app.add_middleware(Envelope, **around)
    app.hot = Envelope(_predict, **around)
    return app


class _App(FastAPI):
    """FastAPI, but predictions go round its layers, which take as long as the whole engine.

    The router has the route too, for the documentation page.
    """

    hot: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["path"], scope["method"]) == ("/predict", "POST"):
            scope["app"] = self
            await self.hot(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


async def _predict(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    try:
        response = await predict.predict(request)
    except ServeError as error:
        response = await _known_error(request, error)
    except HTTPException as error:
        response = await _http_error(request, error)
    await response(scope, receive, send)


class Envelope:
    """Around every request: id, time of arrival, bound on the body, headers, count.

    Args:
        app: What answers.
        metrics: Told of every answer.
        max_body_bytes: Largest body read.
        clock: Seconds, monotonic, the models' own.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        max_body_bytes: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.max_body_bytes = max_body_bytes
        self.clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, _without_known_traces(send))
            return
        received_s = self.clock()
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
                ]
                path: str = scope["path"]
                self.metrics.observe_request(ALIASES.get(path, path), message["status"])
            await watch.send(message)

        watch = ClientWatch(receive, send)
        try:
            limit = self.max_body_bytes if scope["path"] == "/predict" else SMALL_BODY_BYTES
            if int(headers.get("content-length", 0)) > limit:
                raise self._too_large(limit)
            async with watch:
                await self.app(scope, self._bounded(watch.receive, limit), send_with_headers)
        except ServeError as error:
            await _answer(error.status, error.code, error.detail, request_id)(
                scope, receive, send_with_headers
            )
        except ClientDisconnect:
            self._count_departure(scope, request_id)
        except asyncio.CancelledError:
            if watch.left:
                if not started:
                    self._count_departure(scope, request_id)
                return
            if started:  # the longest wait at shutdown is over
                raise
            sentence = "the server is draining and had no time left for this request"
            answer = _answer(503, "not_ready", sentence, request_id)
            await answer(scope, receive, send_with_headers)
        except Exception:
            log.exception("request %s failed", request_id)
            if not started:
                await _answer(500, "internal", INTERNAL_DETAIL, request_id)(
                    scope, receive, send_with_headers
                )

    def _count_departure(self, scope: Scope, request_id: str) -> None:
        log.debug("request %s: the client left", request_id)
        self.metrics.observe_request(scope["path"], CLIENT_LEFT)

    def _bounded(self, receive: Receive, limit: int) -> Receive:
        """Bodies that come in chunks announce no length: count them."""
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
        self.metrics.rejected.labels("body_too_large").inc()
        return BodyTooLarge(
            f"the body is larger than {limit} bytes, the limit here; send less at once"
        )


def _without_known_traces(send: Send) -> Send:
    """A start that fails for a known reason (a ValueError of ours) is told in its sentence."""

    async def plainly(message: Message) -> None:
        if message["type"] == "lifespan.startup.failed":
            kind, _, sentence = message["message"].rstrip().rpartition("\n")[2].partition(": ")
            if kind in ("ValueError", "models.bundle.BundleError"):
                message = {**message, "message": sentence}
        await send(message)

    return plainly


def _answer(
    status: int, code: str, detail: str, request_id: str, headers: dict[str, str] | None = None
) -> Response:
    content = pydantic_core.to_json(problem(status, code, detail, request_id))
    return Response(content, status, headers, media_type=PROBLEM_TYPE)


async def _known_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError), "registered for this class alone"
    if request.url.path == "/predict" and error.code in ("queue_full", "not_ready"):
        request.app.state.metrics.rejected.labels(error.code).inc()
    return _answer(error.status, error.code, error.detail, request.state.request_id, error.headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "registered for this class alone"
    return await _known_error(request, InvalidContent(sentence_of(error.errors()[0])))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for this class alone"
    code = HTTP_CODES.get(error.status_code, "http")
    detail = (
        error.detail if error.status_code != 404 else f"there is no {request.url.path}; see /docs"
    )
    return _answer(
        error.status_code, code, detail, request.state.request_id, dict(error.headers or {})
    )
