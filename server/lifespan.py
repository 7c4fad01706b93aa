"""The server in one process: load models, run the heartbeat, drain on shutdown."""

import asyncio
import contextlib
import functools
import gc
import itertools
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import uvicorn
from fastapi import FastAPI

from models.bundle import Bundle
from server.bundle_folders import BundleSource
from server.choice import NONE_LOADED
from server.control import DRAINING, Control
from server.front import Front, FrontModel
from server.hot_route import HotRoute
from server.metrics import Metrics
from server.model import ModelControl
from server.process_metrics import ProcessCollector, ProcessName
from server.repository import Repository
from server.runner import ModelRunner
from server.settings import Settings
from server.shortage import shortage_of
from server.span_sender import SpanSender
from server.unloading import drain, release_memory

log = logging.getLogger(__name__)

# From the signal until the listeners close. What clients sent by then has been accepted and read: a
# request that waits in the kernel is reset with the listener, or closed with a silent connection.
# Connections that still come prolong it: where cores are scarce, clients and this loop are late.
LAST_CALL_S, MOST_LAST_CALL_S = 0.3, 1.5
HEARTBEAT_S = 0.25
QUIET_BEAT_S = 0.5  # where there is nothing to report: each wake-up of an idle core costs a ms
FLUSH_SPANS_S = 1.0  # for a collector to take the last spans
PROCESS = ProcessName("server", 0)
YOUNG_OBJECTS = 20_000  # a request makes some dozens, nearly none of them in cycles


class Opened(NamedTuple):
    """A model in this process: its network, its front and its control."""

    runner: ModelRunner
    front: FrontModel
    control: ModelControl


class SingleProcess:
    """Front, control and engines in one process; a `ModelHost`.

    Args:
        settings: The configuration.
        metrics: The app's.
        clock: Seconds, monotonic.

    Raises:
        ValueError: If a bundle cannot be served.

    Attributes:
        runners: The network of each model.
    """

    engines = 1  # which load a network

    def __init__(
        self, settings: Settings, metrics: Metrics, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.metrics = metrics
        self.clock = clock
        self._settings, self._numbers = settings, itertools.count()
        metrics.registry.register(ProcessCollector(lambda: {PROCESS: os.getpid()}))
        self.front = Front(settings, metrics.inflight, clock=clock)
        self.control = Control(metrics, self._collect, self._book_all)
        self.control.repository = Repository(settings, self.control.models, self)
        self.runners: dict[ModelControl, ModelRunner] = {}
        self._fronts: dict[ModelControl, FrontModel] = {}
        found = self.control.repository.begin()
        self._opened = [self._open(each.bundle, None) for each in found]

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the engines."""
        self._loop = loop
        for opened in self._opened:
            self._serve(opened)
        self._opened.clear()

    async def run(self) -> None:
        """Heartbeat: book what was done and refresh gauges and windows; ends by cancellation."""
        while True:
            due = self.clock() + HEARTBEAT_S
            await asyncio.sleep(HEARTBEAT_S)
            self.metrics.show_loop_lag(PROCESS, max(self.clock() - due, 0.0))
            await self._collect()
            self.control.refresh()
            # Nothing would answer what is let in now.
            self.front.admission.not_ready = self.control.unhealthy_reason

    async def stop(self) -> None:
        """Reject new requests, answer those in flight, then end all threads.

        By now the drain time is over, or no client waits for an answer any more. So an image that
        is still being decoded holds up nothing.
        """
        self.front.admission.not_ready, self.control.draining = DRAINING, True
        for runner in list(self.runners.values()):
            await asyncio.to_thread(runner.stop)
        await self._collect()
        await asyncio.to_thread(self.front.stop)

    async def load(
        self, source: BundleSource, bundle: Bundle, predecessor: ModelControl | None
    ) -> None:
        """Serve a bundle; as `ModelHost`."""
        try:
            opened = await asyncio.to_thread(self._open, bundle, predecessor)
        except (MemoryError, RuntimeError, OSError) as error:
            if (shortage := shortage_of(error)) is None:
                raise
            raise ValueError(shortage) from error
        self._serve(opened)

    async def unload(self, model: ModelControl) -> None:
        """Serve a model no more; as `ModelHost`."""
        front, runner = self._fronts[model], self.runners[model]
        self.front.remove(front)
        self.control.models.remove(model)
        await drain(front.dispatcher)
        await asyncio.to_thread(runner.stop)
        self.book(model)
        del self._fronts[model], self.runners[model]
        others = self.control.models.values()
        same = [m for m in others if (m.name, m.version) == (model.name, model.version)]
        model.close(successor=same[0] if same else None)
        del front, runner
        release_memory()

    def book(self, model: ModelControl) -> None:
        """Tell control what a model's front and engine have done."""
        work = self.runners[model].take_work()
        model.note_work(work)
        model.show_queues(work.queue_depths.tolist(), work.oldest_wait_s)
        model.note_answers(self._fronts[model].dispatcher.take_answers())

    async def _collect(self) -> None:
        self._book_all()

    def _book_all(self) -> None:
        for model in list(self.runners):
            self.book(model)

    def _open(self, bundle: Bundle, predecessor: ModelControl | None) -> Opened:
        """Load a bundle and measure what it costs; any thread may call."""
        front = self.front.open(bundle)
        runner = ModelRunner(bundle, self._settings, clock=self.clock)
        control = ModelControl(
            bundle,
            self._settings,
            self.metrics,
            self.control.answers,
            runner.facts,
            runner,
            functools.partial(setattr, front.dispatcher, "terms"),
            self.clock,
            predecessor,
            next(self._numbers),
        )
        return Opened(runner, front, control)

    def _serve(self, opened: Opened) -> None:
        """Let requests reach a model."""
        runner, front, control = opened
        front.dispatcher.start(runner, self._loop, functools.partial(self.book, control))
        runner.start(front.dispatcher.on_done, on_exits=front.dispatcher.on_exits)
        self.runners[control], self._fronts[control] = runner, front
        self.control.models.add(control)
        self.front.add(front)


def until_next_s(period_s: float, now_s: float) -> float:
    """Return the time until the clock next shows a multiple of a period.

    Processes that count on this share their wake-ups, and control reads all their heartbeats at
    once.
    """
    return period_s - now_s % period_s


def spare_the_collector() -> None:
    """Let the garbage collector leave alone what is there by now, and look for more less often.

    Call it before models are loaded: what it leaves alone is not found when a model is unloaded.
    """
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


def last_call_end_s(began_s: float, newest_s: float) -> float:
    """Return when the listeners close.

    Args:
        began_s: When the time of the last call began.
        newest_s: When the newest connection was accepted.
    """
    return min(max(began_s, newest_s) + LAST_CALL_S, began_s + MOST_LAST_CALL_S)


class DrainingServer(uvicorn.Server):
    """Drains in two phases, and ends with status 0.

    Args:
        config: uvicorn's; its app is the server's.
        deregister_s: Time after SIGTERM in which new requests are still taken.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        deregister_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config)
        self._deregister_s, self._clock = deregister_s, clock
        self._last_call_s: float | None = None  # when it begins; set by the first signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Fail readiness probes from now on; a second signal ends the process at once.

        uvicorn would note the signal, and end the process by it in the end.
        """
        if self._last_call_s is not None:
            end_at_once()
        app: Any = self.config.app
        if not self.started:  # nobody has been told of this server
            self._last_call_s, self.should_exit = self._clock(), True
            return
        app.state.control.draining = app.state.gate.closing = True
        wait_s = self._deregister_s if sig == signal.SIGTERM else 0.0
        self._last_call_s = self._clock() + wait_s
        if wait_s:
            log.info("draining: requests are taken for another %g s", wait_s)

    async def on_tick(self, counter: int) -> bool:
        """Leave the first phase once its time is over."""
        if self._last_call_s is not None:
            app: Any = self.config.app
            end_s = last_call_end_s(self._last_call_s, app.state.intake.newest_s)
            self.should_exit |= self._clock() >= end_s
        return await super().on_tick(counter)


def end_at_once() -> NoReturn:
    """End the process at once, without finishing its work."""
    log.warning("a second signal: the server ends at once")
    os._exit(1)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load, serve, drain."""
    spare_the_collector()
    try:
        service = await asyncio.to_thread(SingleProcess, app.state.settings, app.state.metrics)
        service.start(asyncio.get_running_loop())
    except (MemoryError, RuntimeError, OSError) as error:
        if (shortage := shortage_of(error)) is None:
            raise
        raise ValueError(shortage) from error
    app.state.service = service
    app.state.front, app.state.control = service.front, service.control
    state = app.state
    state.hot = hot = HotRoute(
        service.front, state.refusals, gate=state.gate, recorder=state.recorder
    )
    spans: SpanSender | None = state.spans
    if spans is not None:
        await asyncio.to_thread(spans.start)
    heartbeat = asyncio.create_task(service.run())
    log.info("ready: %s", service.control.models.names() or NONE_LOADED)
    try:
        yield
    finally:
        heartbeat.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await heartbeat
        hot.close()
        await service.stop()
        if spans is not None:
            await asyncio.to_thread(spans.stop, FLUSH_SPANS_S)
