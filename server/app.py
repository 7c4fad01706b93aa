"""The ASGI app: routes, error answers, and the hot route."""

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server import __version__
from server.bundle_folders import name_repeats
from server.control import Control
from server.errors import ServeError
from server.gate import Gate, Group, KeyFiles, admin_gate, main_gate, without_root
from server.intake import Intake
from server.keys import KeySet
from server.lifespan import lifespan
from server.listener import AdminListener
from server.metrics import Metrics
from server.middleware import SMALL_BODY_BYTES, RequestMiddleware
from server.problems import answer_http_error, answer_known_error, answer_validation_error
from server.routes import audit, budget, feedback, health, predict, repository, scheduler
from server.settings import Settings, limits_of

ADMIN_COLLECT_S = 0.02  # overloaded processes take longer, and report within 0.25 s anyway
DESCRIPTION: Final[dict[str, Any]] = {
    "title": "EENet Serve",
    "version": __version__,
    "summary": "Multi-exit networks under a latency budget",
    "redirect_slashes": False,  # to where the client's Host header says
}


def create_app(settings: Settings, admin_sockets: Sequence[socket.socket] = ()) -> FastAPI:
    """Build the app of a server in one process; its lifespan loads models and starts threads.

    Args:
        settings: The configuration.
        admin_sockets: Those of --admin-port.

    Raises:
        ValueError: If a file of keys cannot be read.
    """
    key_files = KeyFiles(settings)
    gates = main_gate(settings), admin_gate(settings)
    set_keys = functools.partial(_set_keys, gates)
    set_keys(key_files.keys)

    @contextlib.asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(key_files.watch(set_keys))
        try:
            async with (
                lifespan(app),
                admin_listener(app.state.control, settings, gates[1], admin_sockets),
            ):
                yield
        finally:
            watching.cancel()

    app = _App(**DESCRIPTION, lifespan=live)
    app.state.settings, app.state.gate, app.state.collect_s = settings, gates[0], None
    by_version = settings.repository is not None or name_repeats(settings.bundle)
    app.state.metrics = Metrics(CollectorRegistry(), __version__, by_version=by_version)
    app.state.intake = Intake(limits_of(settings), app.state.metrics)
    _add_routes(app)
    around = {
        "metrics": app.state.metrics,
        "max_body_bytes": settings.max_body_mib * 2**20,
        "gate": app.state.gate,
    }
    app.add_middleware(RequestMiddleware, **around)
    app.hot = RequestMiddleware(answer_prediction, **around)
    return app


def create_control_app(control: Control, collect_s: float | None = None) -> FastAPI:
    """Build the app of a control process or of --admin-port, which answers all but predictions.

    Args:
        control: What its routes share.
        collect_s: How long metrics wait for reports of other processes; None: until all have come.
    """
    app = FastAPI(**DESCRIPTION)
    app.state.control, app.state.metrics = control, control.metrics
    app.state.collect_s = collect_s
    _add_routes(app)
    return app


@contextlib.asynccontextmanager
async def admin_listener(
    control: Control, settings: Settings, gate: Gate, sockets: Sequence[socket.socket]
) -> AsyncIterator[None]:
    """Answer on --admin-port meanwhile, if there is one.

    Args:
        control: What the routes share.
        settings: The server's.
        gate: Of this port.
        sockets: Where it listens; none: there is no such port.
    """
    if not sockets:
        yield
        return
    control_app = create_control_app(control, ADMIN_COLLECT_S)
    guarded = RequestMiddleware(control_app, control.metrics, SMALL_BODY_BYTES, gate=gate)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        without_root(scope, gate.root_path)
        await guarded(scope, receive, send)

    listener = AdminListener(app, settings, sockets)
    await listener.start()
    try:
        yield
    finally:
        await listener.stop()


def _set_keys(gates: Iterable[Gate], keys: Mapping[Group, KeySet]) -> None:
    for gate in gates:
        gate.keys = keys


def _add_routes(app: FastAPI) -> None:
    for routes in (predict, budget, audit, scheduler, feedback, health, repository):
        app.include_router(routes.router)
    app.add_exception_handler(ServeError, answer_known_error)
    app.add_exception_handler(RequestValidationError, answer_validation_error)
    app.add_exception_handler(HTTPException, answer_http_error)


class _App(FastAPI):
    """FastAPI with a short path for predictions.

    FastAPI's layers take as long as the whole engine, so POST /predict bypasses them. The router
    has the route too, for the documentation page.
    """

    hot: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            without_root(scope, self.state.gate.root_path)
        if scope["type"] == "http" and (scope["path"], scope["method"]) == ("/predict", "POST"):
            scope["app"] = self
            await self.hot(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


async def answer_prediction(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer POST /predict without FastAPI; an ASGI app."""
    request = Request(scope, receive)
    try:
        response = await predict.predict(request)
    except ServeError as error:
        response = await answer_known_error(request, error)
    except HTTPException as error:
        response = await answer_http_error(request, error)
    await response(scope, receive, send)
