"""The server in one process: load models, run the heartbeat, drain on shutdown."""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from fastapi import FastAPI

from models.bundle import Bundle, load_bundle
from server.control import DRAINING, Control
from server.front import Front
from server.hot_route import HotRoute
from server.metrics import Metrics
from server.model import ModelControl
from server.process_metrics import ProcessCollector, ProcessName
from server.runner import ModelRunner
from server.settings import Settings
from server.shortage import shortage_of
from server.span_sender import SpanSender

log = logging.getLogger(__name__)

# From the signal until the listeners close. What clients sent by then has been accepted and read: a
# request that waits in the kernel is reset with the listener, or closed with a silent connection.
LAST_CALL_S = 0.3
HEARTBEAT_S = 0.25
QUIET_BEAT_S = 0.5  # where there is nothing to report: each wake-up of an idle core costs a ms
FLUSH_SPANS_S = 1.0  # for a collector to take the last spans
PROCESS = ProcessName("server", 0)
YOUNG_OBJECTS = 20_000  # a request makes some dozens, nearly none of them in cycles


class SingleProcess:
    """Front, control and engines in one process.

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
        self.metrics = metrics
        self.clock = clock
        bundles = load_bundles(settings.bundle)
        metrics.registry.register(ProcessCollector(lambda: {PROCESS: os.getpid()}))
        self.front = Front(bundles, settings, metrics.inflight, clock=clock)
        self.control = Control(metrics, self._collect, self._book_all)
        self.runners: dict[str, ModelRunner] = {}
        for name, bundle in bundles.items():
            runner = ModelRunner(bundle, settings, clock=clock)
            self.runners[name] = runner
            self.control.models[name] = ModelControl(
                bundle,
                settings,
                metrics,
                self.control.answers,
                runner.facts,
                runner,
                functools.partial(setattr, self.front.models[name].dispatcher, "terms"),
                clock,
            )

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the engines."""
        for name, runner in self.runners.items():
            dispatcher = self.front.models[name].dispatcher
            dispatcher.start(runner, loop, functools.partial(self.book, name))
            runner.start(dispatcher.on_done, on_exits=dispatcher.on_exits)

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
        for runner in self.runners.values():
            await asyncio.to_thread(runner.stop)
        await self._collect()
        await asyncio.to_thread(self.front.stop)

    def book(self, name: str) -> None:
        """Tell control what a model's front and engine have done."""
        model, work = self.control.models[name], self.runners[name].take_work()
        model.note_work(work)
        model.show_queues(work.queue_depths.tolist(), work.oldest_wait_s)
        model.note_answers(self.front.models[name].dispatcher.take_answers())

    async def _collect(self) -> None:
        self._book_all()

    def _book_all(self) -> None:
        for name in self.control.models:
            self.book(name)


def load_bundles(folders: Sequence[Path]) -> dict[str, Bundle]:
    """Load and verify bundles; return them by name.

    Raises:
        ValueError: If one cannot be read, or two have one name.
    """
    bundles: dict[str, Bundle] = {}
    for folder in folders:
        bundle = load_bundle(folder)
        name = bundle.manifest.name
        if name in bundles:
            raise ValueError(f"two bundles are named {name!r}; rename one in its bundle.json")
        bundles[name] = bundle
    return bundles


def until_next_s(period_s: float, now_s: float) -> float:
    """Return the time until the clock next shows a multiple of a period.

    Processes that count on this share their wake-ups, and control reads all their heartbeats at
    once.
    """
    return period_s - now_s % period_s


def spare_the_collector() -> None:
    """Let the garbage collector leave alone what is loaded by now, and look for more less often."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


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
        self._close_at_s: float | None = None  # set by the first signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Fail readiness probes from now on; a second signal ends the process at once.

        uvicorn would note the signal, and end the process by it in the end.
        """
        if self._close_at_s is not None:
            end_at_once()
        app: Any = self.config.app
        if not self.started:  # nobody has been told of this server
            self._close_at_s, self.should_exit = self._clock(), True
            return
        app.state.control.draining = app.state.gate.closing = True
        wait_s = self._deregister_s if sig == signal.SIGTERM else 0.0
        self._close_at_s = self._clock() + max(wait_s, LAST_CALL_S)
        if wait_s:
            log.info("draining: requests are taken for another %g s", wait_s)

    async def on_tick(self, counter: int) -> bool:
        """Leave the first phase once its time is over."""
        if self._close_at_s is not None and self._clock() >= self._close_at_s:
            self.should_exit = True
        return await super().on_tick(counter)


def end_at_once() -> NoReturn:
    """End the process at once, without finishing its work."""
    log.warning("a second signal: the server ends at once")
    os._exit(1)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load, serve, drain."""
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
    spare_the_collector()
    heartbeat = asyncio.create_task(service.run())
    log.info("ready: %s", ", ".join(service.runners))
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
