"""The ASGI app: routes, error answers, and the hot route."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server import __version__
from server.control import Control
from server.errors import ServeError
from server.intake import Intake
from server.lifespan import lifespan
from server.metrics import Metrics
from server.middleware import RequestMiddleware
from server.problems import answer_http_error, answer_known_error, answer_validation_error
from server.routes import audit, budget, feedback, health, predict, scheduler
from server.settings import Settings, limits_of

DESCRIPTION: Final[dict[str, Any]] = {
    "title": "EENet Serve",
    "version": __version__,
    "summary": "Multi-exit networks under a latency budget",
    "redirect_slashes": False,  # to where the client's Host header says
}


def create_app(settings: Settings) -> FastAPI:
    """Build the app of a server in one process; its lifespan loads models and starts threads.

    Args:
        settings: The configuration.
    """
    app = _App(**DESCRIPTION, lifespan=lifespan)
    app.state.settings = settings
    app.state.metrics = Metrics(CollectorRegistry(), __version__)
    app.state.intake = Intake(limits_of(settings), app.state.metrics)
    _add_routes(app)
    around = {"metrics": app.state.metrics, "max_body_bytes": settings.max_body_mib * 2**20}
    app.add_middleware(RequestMiddleware, **around)
    app.hot = RequestMiddleware(answer_prediction, **around)
    return app


def create_control_app(control: Control) -> FastAPI:
    """Build the app of a control process, which answers all but predictions.

    Args:
        control: What its routes share.
    """
    app = FastAPI(**DESCRIPTION)
    app.state.control, app.state.metrics = control, control.metrics
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    for routes in (predict, budget, audit, scheduler, feedback, health):
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
