"""The ASGI app: routes, error answers, and the hot route."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server import __version__
from server.errors import ServeError
from server.lifespan import lifespan
from server.metrics import Metrics
from server.middleware import RequestMiddleware
from server.problems import answer_http_error, answer_known_error, answer_validation_error
from server.routes import audit, budget, feedback, health, predict, scheduler
from server.settings import Settings


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
    app.add_exception_handler(ServeError, answer_known_error)
    app.add_exception_handler(RequestValidationError, answer_validation_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    around = {"metrics": app.state.metrics, "max_body_bytes": settings.max_body_mib * 2**20}
    app.add_middleware(RequestMiddleware, **around)
    app.hot = RequestMiddleware(_predict, **around)
    return app


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


async def _predict(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    try:
        response = await predict.predict(request)
    except ServeError as error:
        response = await answer_known_error(request, error)
    except HTTPException as error:
        response = await answer_http_error(request, error)
    await response(scope, receive, send)
