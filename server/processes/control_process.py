"""The control process: starts and watches the others, holds budgets, answers operators."""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from server import __version__, shared_turn
from server.app import admin_listener, create_control_app
from server.bundle_folders import name_repeats
from server.choice import NONE_LOADED
from server.control import Control
from server.gate import Group, KeyFiles, admin_gate
from server.keys import KeySet
from server.lifespan import FLUSH_SPANS_S, HEARTBEAT_S, end_at_once, until_next_s
from server.listening import Listeners
from server.metrics import Metrics
from server.process_metrics import ProcessCollector, ProcessName
from server.processes import proxy
from server.processes.asking import Asker, ProcessGone
from server.processes.channel import Channel, OnMessage
from server.processes.links import EngineProcess, FrontProcess, Process
from server.processes.messages import pack_keys
from server.processes.model_fleet import ModelFleet
from server.processes.plan import ProcessPlan, fill_cores
from server.processes.supervisor import Child, Supervisor
from server.processes.timings import unpack_records
from server.processes.trial import try_out
from server.processes.wire import BEAT, Message
from server.processes.zygote import Zygote
from server.recording import make_recorder, make_sender
from server.refusals import RefusalLog
from server.repository import Repository
from server.settings import Settings
from server.trace_settings import TraceSettings

log = logging.getLogger(__name__)

FLUSH_S = 0.25  # for children to report what they have done
STOP_S = 1.0  # for front-ends to end after their time to drain, then for engines
POLL_S = 0.01
REFRESH_S = 0.5
FORGET_S = 5.0  # without news, in which what was learned under load fades
CONTROL, ENGINE, FRONT_END = "control", "engine", "front-end"  # roles


class ControlProcess:
    """Runs the server; never on a request's way.

    Args:
        settings: The server's.
        plan: How many processes of which kind.
        listeners: The sockets of each front-end, all with the same addresses, and the admin's.
        zygote: Forks the children.
        clock: Seconds, monotonic; shared by all processes of the host.
        traces: What the environment says about traces; None: none are recorded.

    Raises:
        ValueError: If a file of keys or a bundle cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        plan: ProcessPlan,
        listeners: Listeners,
        zygote: Zygote,
        clock: Callable[[], float] = time.perf_counter,
        traces: TraceSettings | None = None,
    ) -> None:
        self._settings, self._plan, self._zygote = settings, plan, zygote
        self._clock = clock
        by_version = settings.repository is not None or name_repeats(settings.bundle)
        self.metrics = Metrics(CollectorRegistry(), __version__, by_version=by_version)
        self.control = Control(self.metrics, self._collect)
        self.control.starting = True
        self._refusals = RefusalLog(self.metrics)
        self._app: FastAPI = create_control_app(self.control, self._refusals, settings)
        self._spans = make_sender(traces, self.metrics)
        self._sampler = None if traces is None or self._spans is None else traces.sampler
        emit = self._spans.send if self._spans is not None else lambda record: None
        self._recorder = make_recorder(settings, self._sampler, emit)
        self._loop_lag_s = 0.0
        self._key_files, self._admin_gate = KeyFiles(settings), admin_gate(settings)
        self._admin_gate.keys = self._key_files.keys
        self._admin_sockets = listeners.admin
        self._supervisor = Supervisor(
            zygote,
            clock,
            on_suspect=self._suspect,
            on_given_up=self._give_up,
            on_lost=self._lose_zygote,
            tick_s=HEARTBEAT_S,
        )
        self._engines: list[EngineProcess] = []
        self.metrics.registry.register(ProcessCollector(self._pids))
        self._fronts = [FrontProcess(index, each) for index, each in enumerate(listeners.main)]
        self._image_turn = shared_turn.create()  # of images beyond a front-end's share of pixels
        self._asker = Asker()
        self._fleet = ModelFleet(
            settings,
            self.control,
            self._engines,
            self._fronts,
            self._asker,
            functools.partial(try_out, zygote, self._settings_of_engine(0)),
            clock,
        )
        self.control.repository = Repository(settings, self.control.models, self._fleet)
        self._fleet.begin(self.control.repository.begin())
        self._has_begun = False  # whether the first engine has loaded what a start loads
        self._tasks: set[asyncio.Future[Any]] = set()
        self._stopping = asyncio.Event()
        self._has_news = True  # whether anything but heartbeats has come lately
        self._fault: str | None = None

    async def run(self) -> str | None:
        """Serve until a signal comes; return why it could not start or go on, or None."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._interrupt, number)
        running = (self._watch(), self._supervisor.run(), self._key_files.watch(self._set_keys))
        watches = [asyncio.create_task(each) for each in running]
        async with contextlib.AsyncExitStack() as until_stopped:
            started = asyncio.create_task(self._start(until_stopped))
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait([started, stopping], return_when=asyncio.FIRST_COMPLETED)
            if started.done() and (error := started.exception()) is not None:
                if not isinstance(error, ValueError):
                    log.error("the server could not start", exc_info=error)
                self._fault = self._fault or str(error)
                self._stopping.set()
            await stopping
            started.cancel()
            await self._stop()
        for watch in watches:
            watch.cancel()
        return self._fault

    async def _start(self, until_stopped: contextlib.AsyncExitStack) -> None:
        """Start one engine, which measures; then all others; then the front-ends."""
        admin = admin_listener(
            self.control,
            self._settings,
            self._admin_gate,
            self._admin_sockets,
            self._refusals,
            self._recorder,
        )
        await until_stopped.enter_async_context(admin)
        if self._spans is not None:
            await asyncio.to_thread(self._spans.start)
        self._add_engine(0)
        first = self._engines[0]
        await first.ready.wait()
        self._fleet.publish_all()
        self._has_begun = True
        self._brief_engine(first)
        workers = self._fleet.workers or 1
        plan = fill_cores(self._plan, workers)
        engines = plan.engines or 1
        log.info(
            "front-ends: %d, engines: %d with %d threads each; %s",
            len(self._fronts),
            engines,
            workers,
            plan.reason,
        )
        for front in self._fronts:
            self._add_front(front)
        for index in range(1, engines):
            self._add_engine(index)
        waits = [each.ready.wait() for each in (*self._engines, *self._fronts)]
        await asyncio.gather(*waits)
        log.info("ready: %s", self.control.models.names() or NONE_LOADED)

    def _add_engine(self, index: int) -> None:
        engine = EngineProcess(index)
        self._engines.append(engine)
        hear = functools.partial(self._hear_engine, engine)

        def make_setup() -> tuple[dict[str, Any], list[int]]:
            server = self._settings_of_engine(index).model_dump(mode="json")
            theirs = self._open_channel(engine, hear)
            return {"server": server}, [os.dup(engine.descriptor), theirs]

        self._supervisor.add(
            ENGINE,
            index,
            make_setup,
            functools.partial(self._equip_soon, engine),
            lambda child: self._lose_engine(engine),
        )

    def _settings_of_engine(self, index: int) -> Settings:
        if len(self._plan.devices) == 1:
            return self._settings
        return self._settings.model_copy(update={"device": self._plan.devices[index]})

    def _equip_soon(self, engine: EngineProcess, child: Child) -> None:
        engine.child = child
        self._run(self._equip(engine))

    async def _equip(self, engine: EngineProcess) -> None:
        """Let an engine load the models; then it works for the front-ends."""
        try:
            await self._fleet.equip(engine)
        except ProcessGone:
            return  # the supervisor starts it again
        except (ValueError, TimeoutError) as error:
            if not self._has_begun:
                self._fault = str(error)
                self._stopping.set()
                return
            log.error("engine %d cannot start: %s", engine.index, error)
            if engine.child is not None:
                self._zygote.kill(engine.child.pid, signal.SIGKILL)
            return
        self._note_ready(engine)
        if self._has_begun:  # not the first engine at the start
            self._brief_engine(engine)

    def _add_front(self, front: FrontProcess) -> None:
        hear = functools.partial(self._hear_front, front)

        def make_setup() -> tuple[dict[str, Any], list[int]]:
            server = self._settings.model_dump(mode="json")
            if (password := self._settings.ssl_keyfile_password) is not None:  # dumped masked
                server["ssl_keyfile_password"] = password.get_secret_value()
            theirs = self._open_channel(front, hear)
            self._brief_front(front)
            listening = [os.dup(each.fileno()) for each in front.listening]
            shared = {
                "server": server,
                "front_ends": len(self._fronts),
                "sampler": self._sampler,
            }
            return shared, [os.dup(self._image_turn), theirs, *listening]

        self._supervisor.add(
            FRONT_END,
            front.index,
            make_setup,
            functools.partial(setattr, front, "child"),
            lambda child: self._lose_front(front),
        )

    def _open_channel(self, process: Process, hear: OnMessage) -> int:
        """Open a connection to a process that is about to start; return its end."""
        ours, theirs = socket.socketpair()
        process.channel = Channel(ours, asyncio.get_running_loop(), hear, lambda: None)
        return theirs.detach()

    def _connect(self, front: FrontProcess, engine: EngineProcess) -> None:
        """Connect a front-end with an engine."""
        ends = socket.socketpair()
        with ends[0], ends[1]:
            front.send(Message("engine", {"index": engine.index}), [ends[0].fileno()])
            engine.send(Message("front", {"index": front.index}), [ends[1].fileno()])

    def _brief_front(self, front: FrontProcess) -> None:
        """Tell a front-end what it must know before it takes requests."""
        front.send(pack_keys(self._key_files.keys))
        if self.control.draining:
            front.send(Message("deregister"))
        self._fleet.brief_front(front)
        for engine in self._engines:
            if engine.ready.is_set():
                self._connect(front, engine)
        front.send(Message("start"))

    def _brief_engine(self, engine: EngineProcess) -> None:
        """Let a ready engine work for the front-ends."""
        self._fleet.brief_engine(engine)
        for front in self._fronts:
            if front.channel is not None:
                self._connect(front, engine)

    def _hear_engine(self, engine: EngineProcess, message: Message, descriptors: list[int]) -> None:
        self._note_beat(engine)
        self._has_news |= message.kind != BEAT
        if message.kind == BEAT:
            engine.loop_lag_s = message.fields["loop_lag_s"]
        elif message.kind == "work":
            self._fleet.note_work(engine, message)
        elif message.kind == "reply":
            self._asker.resolve(message)

    def _hear_front(self, front: FrontProcess, message: Message, descriptors: list[int]) -> None:
        self._note_beat(front)
        self._has_news |= message.kind != BEAT
        if message.kind == BEAT:
            front.loop_lag_s = message.fields["loop_lag_s"]
        elif message.kind == "spans":
            self._send_spans(message)
        elif message.kind == "answers":
            self._fleet.note_answers(message)
        elif message.kind == "counts":
            front.counts = dict(message.fields)
            self._count(front.counts)
        elif message.kind == "http":
            self._run(self._answer(front, message))
        elif message.kind == "reply":
            self._asker.resolve(message)
        elif message.kind == "ready":
            self._note_ready(front)
            self.control.starting = False

    def _count(self, counts: dict[str, Any]) -> None:
        for route, status, count in counts["requests"]:
            self.metrics.observe_request(route, status, count)
        for reason, count in counts["rejected"]:
            self.metrics.count_rejected(reason, count)
        self._fleet.note_cancelled(counts["cancelled"])

    def _send_spans(self, message: Message) -> None:
        records, lost = unpack_records(message)
        self.metrics.count_spans("lost", lost)
        if self._spans is not None:
            for record in records:
                self._spans.send(record)

    async def _answer(self, front: FrontProcess, message: Message) -> None:
        front.send(await proxy.answer(self._app, message))

    def _lose_engine(self, engine: EngineProcess) -> None:
        """Tell the front-ends which of their requests may have killed the engine."""
        engine.lose()
        self._asker.give_up(engine)
        engine.work.clear()
        self._fleet.note_loss(engine)
        for front in self._fronts:
            executing = sorted(engine.black_box.read(front.index))
            front.send(Message("died", {"index": engine.index, "executing": executing}))

    def _note_beat(self, process: Process) -> None:
        if process.child is not None:
            self._supervisor.beat(process.child)

    def _note_ready(self, process: Process) -> None:
        assert process.child is not None, "who is heard has been started"
        self._supervisor.ready(process.child)
        process.ready.set()

    def _suspect(self, child: Child, suspect: bool) -> None:
        """Let no front-end send requests to an engine that is silent."""
        if child.role == ENGINE:
            for front in self._fronts:
                front.send(Message("accepting", {"index": child.index, "accepts": not suspect}))

    def _give_up(self, child: Child) -> None:
        if child.role == ENGINE:
            self._engines[child.index].given_up = True
        if not self._has_begun:
            self._fault = self._fault or "no engine could be started; the log has the cause"
            self._stopping.set()

    def _lose_front(self, front: FrontProcess) -> None:
        front.lose()
        self._asker.give_up(front)
        front.counts = {"inflight": 0}

    def _lose_zygote(self) -> None:
        self._fault = "the process that starts all others has ended"
        self._stopping.set()

    def _set_keys(self, keys: Mapping[Group, KeySet]) -> None:
        self._admin_gate.keys = keys
        for front in self._fronts:
            front.send(pack_keys(keys))

    def _pids(self) -> dict[ProcessName, int]:
        """Return the processes that run."""
        ours = {ProcessName(CONTROL, 0): os.getpid(), ProcessName("zygote", 0): self._zygote.pid}
        children = self._supervisor.children
        return ours | {ProcessName(each.role, each.index): each.pid for each in children}

    async def _collect(self) -> None:
        """Return once everything that front-ends and engines have done is booked."""
        able = [each for each in (*self._fronts, *self._engines) if each.ready.is_set()]
        flushes = [self._asker.ask(each, Message("flush"), FLUSH_S) for each in able]
        await asyncio.gather(*flushes, return_exceptions=True)  # a silent one is known elsewhere
        self._refresh()

    def _show(self) -> None:
        """Set the gauges that are sums over processes."""
        self.metrics.inflight.set(sum(front.counts["inflight"] for front in self._fronts))
        self.metrics.show_loop_lag(ProcessName(CONTROL, 0), self._loop_lag_s)
        for role, processes in ((FRONT_END, self._fronts), (ENGINE, self._engines)):
            for process in processes:
                self.metrics.show_loop_lag(ProcessName(role, process.index), process.loop_lag_s)
        self.metrics.show_restarts(self._supervisor.restarts)
        self._fleet.show_queues()

    async def _watch(self) -> None:
        """Refresh gauges and windows, and act on what is due; ends by cancellation."""
        quiet_s = 0.0
        while True:
            now_s = self._clock()
            delay_s = until_next_s(REFRESH_S, now_s)
            await asyncio.sleep(delay_s)
            self._loop_lag_s = max(self._clock() - now_s - delay_s, 0.0)
            quiet_s = 0.0 if self._has_news else quiet_s + REFRESH_S
            self._has_news = False
            for engine in self._engines:
                self._kill_if_stalled(engine)
            if quiet_s < FORGET_S:  # estimates fade for some time after the last news
                self._refresh()

    def _refresh(self) -> None:
        self.control.refresh()
        self._show()

    def _kill_if_stalled(self, engine: EngineProcess) -> None:
        stalls = [work.fault for work in engine.work.values() if work.stalled]
        if not stalls or self._stopping.is_set():
            return
        if engine.child is not None and engine.ready.is_set():
            log.error("%s is killed: %s", engine.child, stalls[0])
            engine.ready.clear()
            self._zygote.kill(engine.child.pid, signal.SIGKILL)

    def _interrupt(self, number: int) -> None:
        """Begin to drain, after SIGTERM with a time to deregister; on a second signal end."""
        if self.control.draining:
            end_at_once()
        self.control.draining = True
        is_known = not self.control.starting  # to load balancers
        wait_s = self._settings.deregister_s if number == signal.SIGTERM and is_known else 0.0
        if not wait_s:
            self._stopping.set()
            return
        log.info("draining: requests are taken for another %g s", wait_s)
        for front in self._fronts:
            front.send(Message("deregister"))
        asyncio.get_running_loop().call_later(wait_s, self._stopping.set)

    async def _stop(self) -> None:
        """Let the front-ends answer what is in, then the engines end."""
        self.control.draining = True
        self._supervisor.stop_restarting()
        for front in self._fronts:
            front.send(Message("drain"))
            for sock in front.listening:  # the front-end has copies, which it closes too
                sock.close()
        await self._fronts_ended(self._settings.drain_s + STOP_S)
        for engine in self._engines:
            engine.send(Message("stop"))
        await asyncio.gather(self._supervisor.stop(STOP_S), self._flush_spans())
        self._zygote.close()

    async def _flush_spans(self) -> None:
        if self._spans is not None:
            await asyncio.to_thread(self._spans.stop, FLUSH_SPANS_S)

    async def _fronts_ended(self, timeout_s: float) -> None:
        """Return when all front-ends have ended, or after a time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while any(front.child for front in self._fronts):
                    await asyncio.sleep(POLL_S)

    def _run(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
