"""The ASGI app: routes, error answers, and the hot route."""

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
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
from server.openapi.document import Document
from server.prediction_paths import (
    CLASSIFY,
    INFER,
    KSERVE,
    PREDICT,
    PREDICT_STREAM,
    sample_route,
    takes_samples,
)
from server.problems import answer_http_error, answer_known_error, answer_validation_error
from server.recording import make_recorder, make_sender
from server.refusals import RefusalLog
from server.request_recorder import RequestRecorder
from server.routes import (
    audit,
    budget,
    classify,
    documentation,
    feedback,
    health,
    kserve,
    models,
    open_inference,
    predict,
    repository,
    scheduler,
    stream,
)
from server.settings import Settings, limits_of
from server.trace_settings import TraceSettings

ADMIN_COLLECT_S = 0.02  # overloaded processes take longer, and report within 0.25 s anyway
# Those that bypass FastAPI, whose layers take as long as the whole engine, by label.
SAMPLE_HANDLERS: Final[dict[str, Callable[[Request], Awaitable[Response]]]] = {
    PREDICT: predict.predict,
    PREDICT_STREAM: stream.predict_stream,
    CLASSIFY: classify.classify,
    KSERVE: kserve.predict,
    INFER: open_inference.infer,
}
BARE: Final[dict[str, Any]] = {
    "openapi_url": None,  # routes/documentation.py has its pages
    "redirect_slashes": False,  # to where the client's Host header says
}


def create_app(
    settings: Settings,
    admin_sockets: Sequence[socket.socket] = (),
    traces: TraceSettings | None = None,
) -> FastAPI:
    """Build the app of a server in one process; its lifespan loads models and starts threads.

    Args:
        settings: The configuration.
        admin_sockets: Those of --admin-port.
        traces: What the environment says about traces; None: none are recorded.

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
                admin_listener(
                    app.state.control, settings, gates[1], admin_sockets, refusals, recorder
                ),
            ):
                yield
        finally:
            watching.cancel()

    app = _App(**BARE, lifespan=live)
    app.state.settings, app.state.gate, app.state.collect_s = settings, gates[0], None
    by_version = settings.repository is not None or name_repeats(settings.bundle)
    app.state.metrics = Metrics(CollectorRegistry(), __version__, by_version=by_version)
    app.state.spans = spans = make_sender(traces, app.state.metrics)
    if traces is None or spans is None:
        recorder = make_recorder(settings)
    else:
        recorder = make_recorder(settings, traces.sampler, spans.send)
    app.state.recorder = recorder
    app.state.refusals = refusals = RefusalLog(app.state.metrics)
    app.state.intake = Intake(limits_of(settings), refusals)
    _add_routes(app, settings)
    around = {
        "refusals": refusals,
        "max_body_bytes": settings.max_body_mib * 2**20,
        "gate": app.state.gate,
        "recorder": recorder,
    }
    app.add_middleware(RequestMiddleware, **around)
    app.hot = RequestMiddleware(answer_prediction, **around)
    return app


def create_control_app(
    control: Control, refusals: RefusalLog, settings: Settings, collect_s: float | None = None
) -> FastAPI:
    """Build the app of a control process or of --admin-port, which answers all but predictions.

    Args:
        control: What its routes share.
        refusals: Records refusals.
        settings: The server's.
        collect_s: How long metrics wait for reports of other processes; None: until all have come.
    """
    app = FastAPI(**BARE)
    app.state.control, app.state.metrics = control, control.metrics
    app.state.refusals, app.state.collect_s = refusals, collect_s
    _add_routes(app, settings)
    return app


@contextlib.asynccontextmanager
async def admin_listener(
    control: Control,
    settings: Settings,
    gate: Gate,
    sockets: Sequence[socket.socket],
    refusals: RefusalLog,
    recorder: RequestRecorder,
) -> AsyncIterator[None]:
    """Answer on --admin-port meanwhile, if there is one.

    Args:
        control: What the routes share.
        settings: The server's.
        gate: Of this port.
        sockets: Where it listens; none: there is no such port.
        refusals: Records refusals.
        recorder: Follows its requests.
    """
    if not sockets:
        yield
        return
    control_app = create_control_app(control, refusals, settings, ADMIN_COLLECT_S)
    guarded = RequestMiddleware(
        control_app, refusals, SMALL_BODY_BYTES, gate=gate, recorder=recorder
    )
    app = _AdminApp(guarded, Intake(limits_of(settings), refusals))
    listener = AdminListener(app, settings, sockets)
    await listener.start()
    try:
        yield
    finally:
        await listener.stop()


def _set_keys(gates: Iterable[Gate], keys: Mapping[Group, KeySet]) -> None:
    for gate in gates:
        gate.keys = keys


def _add_routes(app: FastAPI, settings: Settings) -> None:
    app.state.document = Document(app.routes, settings)
    own = predict, stream, budget, audit, scheduler, feedback, health, models, repository
    others = kserve, open_inference, classify, documentation
    for routes in (*own, *others):
        app.include_router(routes.router)
    app.add_exception_handler(ServeError, answer_known_error)
    app.add_exception_handler(RequestValidationError, answer_validation_error)
    app.add_exception_handler(HTTPException, answer_http_error)


class _AdminApp:
    """The app of --admin-port, with bounds of its own on what its clients hold.

    Args:
        guarded: Answers what its gate lets pass.
        intake: The bounds; `HttpProtocol` reads them from `state`.
    """

    def __init__(self, guarded: RequestMiddleware, intake: Intake) -> None:
        self._guarded, self.state = guarded, State({"intake": intake})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        without_root(scope, self._guarded.gate.root_path)
        await self._guarded(scope, receive, send)


class _App(FastAPI):
    """FastAPI with a short path for predictions.

    FastAPI's layers take as long as the whole engine, so routes that take samples bypass them. The
    router has these routes too, for the documentation page.
    """

    hot: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            without_root(scope, self.state.gate.root_path)
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        if is_post and takes_samples(scope["path"]):
            scope["app"] = self
            await self.hot(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


async def answer_prediction(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a route that takes samples without FastAPI; an ASGI app."""
    route = sample_route(scope["path"])
    assert route is not None, "other paths go elsewhere"
    scope["path_params"] = {name: value for name, value in route.params.items() if value}
    request = Request(scope, receive)
    try:
        response = await SAMPLE_HANDLERS[route.label](request)
    except ServeError as error:
        response = await answer_known_error(request, error)
    except HTTPException as error:
        response = await answer_http_error(request, error)
    await response(scope, receive, send)
