"""Application state and lifespan: load models, run the heartbeat, drain on shutdown."""

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request

from models.bundle import load_bundle
from server.admission import Admission
from server.decode_pool import DecodePool
from server.errors import InvalidContent, UnknownModel
from server.metrics import Metrics
from server.model import Modality, ServedModel
from server.quality.feedback import LoggedPrediction, PredictionLog
from server.settings import Settings

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.25
STALLED_S = 10.0
DRAINING = "the server is draining; try another replica"


class ServerState:
    """Everything the routes share; at `app.state.service` while the server runs.

    Args:
        settings: The configuration.
        metrics: The app's.
        clock: Seconds, monotonic.

    Raises:
        ValueError: If a bundle cannot be served.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.clock = clock
        self.decode_pool = DecodePool(settings.decode_workers)
        self.admission = Admission(settings.max_queue, metrics.inflight, clock)
        self.answers = PredictionLog()
        self.draining = False
        self.models: dict[str, ServedModel] = {}
        for folder in settings.bundle:
            model = ServedModel(
                load_bundle(folder), settings, metrics, self.decode_pool, self.answers, clock
            )
            if model.name in self.models:
                raise ValueError(
                    f"two bundles are named {model.name!r}; rename one in its bundle.json"
                )
            self.models[model.name] = model

    def select_model(self, name: str | None, reads: Modality) -> ServedModel:
        """Return the model a request asks for.

        Args:
            name: The name in the request, if any.
            reads: The modality of the request's input.

        Raises:
            UnknownModel: If no model of that name is loaded, or none that reads this modality.
            InvalidContent: If the named model reads another modality, or several models could
                answer and the request names none.
        """
        if name is not None:
            model = self.get_model(name)
            if model.reads != reads:
                raise InvalidContent(f"{name} reads {model.reads}s; send it one, not {reads}s")
            return model
        able = [model for model in self.models.values() if model.reads == reads]
        if len(able) > 1:
            names = ", ".join(sorted(model.name for model in able))
            raise InvalidContent(f"several models read {reads}s; name one of {names} as model")
        if not able:
            loaded = ", ".join(f"{m.name} ({m.reads}s)" for m in self.models.values())
            raise UnknownModel(f"no model that reads {reads}s is loaded; loaded are {loaded}")
        return able[0]

    def get_model(self, name: str | None) -> ServedModel:
        """Return the model of a name; without a name, the only model.

        Raises:
            UnknownModel: If no model of that name is loaded.
            InvalidContent: If the request names none and there are several.
        """
        loaded = ", ".join(sorted(self.models))
        if name is None:
            if len(self.models) > 1:
                raise InvalidContent(f"several models are loaded; name one of {loaded} as model")
            return next(iter(self.models.values()))
        if name not in self.models:
            raise UnknownModel(f"no model {name!r} is loaded; name one of {loaded}")
        return self.models[name]

    def select_models(self, name: str | None) -> list[ServedModel]:
        """Return the model of a name; without a name, all models.

        Raises:
            UnknownModel: If none is loaded under the name.
        """
        return list(self.models.values()) if name is None else [self.get_model(name)]

    def find_prediction(self, request_id: str) -> LoggedPrediction | None:
        """Return the answer given under a request's id; None if there was none or it is too old."""
        for model in self.models.values():
            model.flush_samples()  # also the answers of a moment ago
        return self.answers.find(request_id)

    @property
    def not_ready_reason(self) -> str | None:
        """Why the server takes no requests; None if it does."""
        broken = [model.broken for model in self.models.values() if model.broken is not None]
        return broken[0] if broken else DRAINING if self.draining else self.admission.not_ready

    @property
    def unhealthy_reason(self) -> str | None:
        """Why the process should be restarted; None while it works."""
        for model in self.models.values():
            if not model.engine.alive:
                return f"an engine worker of {model.name} has died"
            if (
                model.engine.oldest_wait_s() > STALLED_S
                and self.clock() - model.engine.last_progress_s > STALLED_S
            ):
                return f"the engine of {model.name} has made no progress for {STALLED_S:g} s"
        return None

    async def run(self) -> None:
        """Heartbeat: refresh gauges and windows, probe models that failed; ends by cancellation."""
        while True:
            due = self.clock() + HEARTBEAT_S
            await asyncio.sleep(HEARTBEAT_S)
            self.metrics.loop_lag.set(max(self.clock() - due, 0.0))
            for model in self.models.values():
                model.refresh()
                await model.probe()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the engines."""
        for model in self.models.values():
            model.start(loop)

    async def stop(self) -> None:
        """Reject new requests, answer those in flight, then end all threads.

        By now the drain time is over, or no client waits for an answer any more. So an image that
        is still being decoded holds up nothing.
        """
        self.admission.not_ready = DRAINING
        for model in self.models.values():
            await asyncio.to_thread(model.stop)
        await asyncio.to_thread(self.decode_pool.shutdown)


class DrainingServer(uvicorn.Server):
    """Reports that it is draining as soon as the signal arrives."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Fail readiness probes from now on; accepted requests are still answered."""
        app = self.config.app
        if isinstance(app, FastAPI) and hasattr(app.state, "service"):
            app.state.service.draining = True
        super().handle_exit(sig, frame)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load, serve, drain."""
    service = await asyncio.to_thread(ServerState, app.state.settings, app.state.metrics)
    service.start(asyncio.get_running_loop())
    app.state.service = service
    gc.freeze()  # the models stay loaded, so the garbage collector need not walk them again
    heartbeat = asyncio.create_task(service.run())
    log.info("ready: %s", ", ".join(service.models))
    try:
        yield
    finally:
        heartbeat.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await heartbeat
        await service.stop()


def server_state(request: Request) -> ServerState:
    """Return the state of the running server."""
    service: ServerState = request.app.state.service
    return service
