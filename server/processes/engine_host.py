"""The engine process: runs the networks for all front-ends, and reports to control."""

import asyncio
import functools
import logging
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import uvloop

from server.bundle_folders import BundleSource, open_source
from server.cores import usable_cores
from server.engine.request import ExitTrace, InferenceRequest, Shown
from server.errors import UnknownModel
from server.lifespan import HEARTBEAT_S, QUIET_BEAT_S, spare_the_collector, until_next_s
from server.loading import device_names
from server.processes.black_box import BlackBox
from server.processes.channel import Channel
from server.processes.messages import (
    RemoteRequest,
    facts_fields,
    facts_of,
    pack_exits,
    pack_results,
    pack_work,
    unpack_requests,
    unpack_scheduler,
    unpack_source,
)
from server.processes.plan import fill_cores, make_plan, workers_per_engine
from server.processes.wire import Message, beat
from server.processes.zygote import ChildSetup
from server.reports import RunnerFacts, Work
from server.runner import ModelRunner
from server.settings import Settings
from server.shortage import shortage_of
from server.unloading import UNLOADED, release_memory

log = logging.getLogger(__name__)

# Python for a row that comes over a connection, against the engine's and the policy's alone.
TRANSPORT_FACTOR = 4
NO_RUNNERS: Mapping[int, ModelRunner] = MappingProxyType({})
# Batches that take no longer run on the event loop: on a CPU, whose core they would take from it
# anyway, and on a device, beside which a thread could do nothing meanwhile.
LONGEST_ON_LOOP_MS, LONGEST_ON_LOOP_OF_DEVICE_MS = 25.0, 0.1


class FrontLink:
    """One front-end, as this engine sees it.

    Attributes:
        index: Which front-end it is.
        channel: The connection.
        requests: Those that it waits for, by number.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.channel: Channel | None = None
        self.requests: dict[int, tuple[ModelRunner, RemoteRequest]] = {}


class EngineHost:
    """Runs every model for the front-ends that control connects.

    Args:
        settings: The server's.
        control: The connection to the control process.
        black_box: Where to note what is being executed.
        clock: Seconds, monotonic; shared by all processes of the host.
        runners: Models that are loaded already, by number; control tells the others.
    """

    def __init__(
        self,
        settings: Settings,
        control: socket.socket,
        black_box: BlackBox,
        clock: Callable[[], float] = time.perf_counter,
        runners: Mapping[int, ModelRunner] = NO_RUNNERS,
    ) -> None:
        self._settings = settings
        self._runners: dict[int, ModelRunner] = dict(runners)
        self._serving = set(runners)  # numbers of those whose workers run
        self._workers: int | None = None  # threads of each model, once it is decided
        self._clock = clock
        self._black_box = black_box
        self._fronts: set[FrontLink] = set()
        self._control_socket = control
        self._ended = asyncio.Event()
        self._had_work = set(runners)  # so that the first report is whole
        self._tasks: set[asyncio.Future[None]] = set()
        self._runs_batches = False  # whether this loop is about to
        self._beat_at_s: float | None = None  # when the next beat is due
        self._loop_lag_s = 0.0  # of the latest beat
        self._acts: dict[str, Callable[[Message, list[int]], None]] = {
            "load": self._later(self._load),
            "start": self._later(self._start),
            "unload": self._later(self._unload),
            "front": self._connect,
            "parameter": self._set_parameter,
            "max_batch": self._set_max_batch,
            "activate": self._activate,
            "try": self._later(self._try_scheduler),
            "flush": self._flush,
            "stop": lambda message, fds: self._ended.set(),
        }

    async def run(self) -> None:
        """Serve until control says so or is gone."""
        self._loop = asyncio.get_running_loop()
        self._on_loop: list[ModelRunner] = []
        self._control = Channel(self._control_socket, self._loop, self._obey, self._ended.set)
        for number, runner in self._runners.items():
            self._serve(number, runner)
        self._beat()
        await self._ended.wait()
        self._next_beat.cancel()
        for number in self._serving:
            self._runners[number].stop()
        self._report()

    async def _load(self, message: Message) -> None:
        """Load a model on a thread; once this engine has started, also run it."""
        number, facts, fault = message.fields["model"], message.fields["facts"], None
        try:
            source = unpack_source(message.fields["source"])
            known = None if facts is None else facts_of(facts)
            runner = await asyncio.to_thread(open_runner, source, self._settings, known)
            self._runners[number] = runner
            facts = facts_fields(runner.facts)
            if self._workers is not None:
                self._set_workers(runner, self._workers)
                self._serve(number, runner)
        except Exception as error:
            fault = shortage_of(error) or str(error)
            if not isinstance(error, ValueError):
                log.exception("a model could not be loaded")
        self._reply(message, fault=fault, facts=facts)

    async def _start(self, message: Message) -> None:
        """Decide on the threads of each model, and run those that have been loaded."""
        workers = message.fields["workers"]
        if workers is None:
            runners = list(self._runners.values())
            workers = await asyncio.to_thread(count_workers, runners, self._settings)
        self._workers = workers
        for number, runner in self._runners.items():
            self._set_workers(runner, workers)
            self._serve(number, runner)
        self._reply(message, workers=workers)

    async def _unload(self, message: Message) -> None:
        """End a model, whose requests have been answered, and give its memory back."""
        number = message.fields["model"]
        runner = self._runners.pop(number)
        self._serving.discard(number)
        if runner in self._on_loop:
            self._on_loop.remove(runner)
            runner.stop()  # the loop is the thread that runs its batches
        else:
            await asyncio.to_thread(runner.stop)
        self._control.send(pack_work(number, runner.take_work()))
        self._had_work.discard(number)
        self._black_box.take_drawn(number)
        del runner
        release_memory()
        self._reply(message)

    @staticmethod
    def _set_workers(runner: ModelRunner, workers: int) -> None:
        runner.set_workers(workers)
        if workers == 1 and runs_on_loop(runner.facts):
            runner.engine.workers = 0

    def _serve(self, number: int, runner: ModelRunner) -> None:
        if runner.engine.workers == 0:
            self._on_loop.append(runner)
        runner.auditor.on_accept = functools.partial(self._black_box.count_draw, number)
        runner.start(self._finished, self._note_start, self._run_batches_soon, self._show)
        self._serving.add(number)
        self._had_work.add(number)

    def _later(
        self, act: Callable[[Message], Coroutine[Any, Any, None]]
    ) -> Callable[[Message, list[int]], None]:
        """Return an act on a message that goes on while others come."""

        def begin(message: Message, fds: list[int]) -> None:
            task = asyncio.ensure_future(act(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return begin

    def _reply(self, message: Message, **fields: Any) -> None:
        self._control.send(Message("reply", {"number": message.fields["number"], **fields}))

    def _beat(self) -> None:
        now_s = self._clock()
        self._loop_lag_s = 0.0 if self._beat_at_s is None else max(now_s - self._beat_at_s, 0.0)
        period_s = HEARTBEAT_S if self._report() else QUIET_BEAT_S
        now_s = self._clock()
        delay_s = until_next_s(period_s, now_s)
        self._beat_at_s = now_s + delay_s
        self._next_beat = self._loop.call_later(delay_s, self._beat)

    def _run_batches_soon(self) -> None:
        """Run a batch of every model without threads of its own, once what has come is read."""
        if self._on_loop and not self._runs_batches:
            self._runs_batches = True
            self._loop.call_soon(self._run_batches)

    def _run_batches(self) -> None:
        self._runs_batches = False
        if any([runner.engine.run_batch() for runner in self._on_loop]):
            self._run_batches_soon()

    def _obey(self, message: Message, fds: list[int]) -> None:
        self._acts[message.kind](message, fds)

    def _connect(self, message: Message, fds: list[int]) -> None:
        link = FrontLink(message.fields["index"])
        link.channel = Channel(
            socket.socket(fileno=fds[0]),
            self._loop,
            lambda message, fds: self._receive(link, message),
            lambda: self._drop(link),
        )
        self._fronts.add(link)

    def _receive(self, link: FrontLink, message: Message) -> None:
        """Take requests of a front-end, or drop those whose clients have left."""
        if message.kind == "cancel":
            (numbers,) = message.arrays
            self._cancel(link, numbers.tolist())
            return
        runner = self._runners.get(message.fields["model"])
        if runner is None:
            self._refuse(link, message)
            return
        if delivery := message.fields["delivery"]:
            runner.note_delivery(*delivery)
        requests = unpack_requests(message, link, runner.network_input)
        for request in requests:
            link.requests[request.number] = runner, request
        runner.submit(requests)

    def _refuse(self, link: FrontLink, message: Message) -> None:
        """Answer requests to a model that has been unloaded meanwhile."""
        requests = unpack_requests(message, link, lambda arrays: arrays)
        for request in requests:
            request.result = UnknownModel(UNLOADED)
        for answer in pack_results(requests, self._clock(), len(link.requests)):
            link.channel.send(answer)  # type: ignore[union-attr]

    def _drop(self, link: FrontLink) -> None:
        """Drop all requests of a front-end that is gone."""
        self._fronts.discard(link)
        self._cancel(link, list(link.requests))

    def _cancel(self, link: FrontLink, numbers: list[int]) -> None:
        dropped: dict[ModelRunner, list[InferenceRequest]] = defaultdict(list)
        for number in numbers:
            if (held := link.requests.pop(number, None)) is not None:
                dropped[held[0]].append(held[1])
        for runner, requests in dropped.items():
            runner.cancel(requests)

    def _finished(self, requests: list[InferenceRequest]) -> None:
        """Send results to where their requests came from; a worker calls."""
        by_front: dict[FrontLink, list[RemoteRequest]] = defaultdict(list)
        for request in requests:
            assert isinstance(request, RemoteRequest), "all requests came over a connection"
            if request.front.requests.pop(request.number, None) is not None:
                by_front[request.front].append(request)
        held = sum([len(front.requests) for front in list(self._fronts)])
        for front, finished in by_front.items():
            for message in pack_results(finished, self._clock(), held):
                front.channel.send(message)  # type: ignore[union-attr]

    def _show(self, shown: Shown) -> None:
        """Send what streamed requests show at an exit to their front-ends; a worker calls."""
        by_front: dict[FrontLink, list[tuple[RemoteRequest, ExitTrace]]] = defaultdict(list)
        for request, entry in shown:
            assert isinstance(request, RemoteRequest), "all requests came over a connection"
            if request.number in request.front.requests:
                by_front[request.front].append((request, entry))
        for front, passed in by_front.items():
            front.channel.send(pack_exits(passed))  # type: ignore[union-attr]

    def _note_start(self, requests: Sequence[InferenceRequest]) -> None:
        self._black_box.write([r.mark for r in requests if isinstance(r, RemoteRequest)])

    def _set_parameter(self, message: Message, fds: list[int]) -> None:
        fields = message.fields
        self._runners[fields["model"]].set_parameter(fields["parameter"], fields["queued"])

    def _set_max_batch(self, message: Message, fds: list[int]) -> None:
        self._runners[message.fields["model"]].set_max_batch(message.fields["rows"])

    def _activate(self, message: Message, fds: list[int]) -> None:
        fields = message.fields
        self._runners[fields["model"]].activate(
            unpack_scheduler(message), fields["policy_version"], fields["parameter"]
        )

    async def _try_scheduler(self, message: Message) -> None:
        fault = None
        try:
            runner = self._runners[message.fields["model"]]
            await runner.try_scheduler(unpack_scheduler(message))
        except ValueError as error:
            fault = str(error)
        self._reply(message, fault=fault)

    def _flush(self, message: Message, fds: list[int]) -> None:
        self._report()
        self._reply(message)

    def _report(self) -> bool:
        """Tell control what was done; without news, that this engine is alive: return False."""
        has_news = False
        for model in self._serving:
            runner = self._runners[model]
            if runner.is_quiet and model not in self._had_work:
                continue
            work = runner.take_work()
            if has_work(work) or model in self._had_work:
                self._control.send(pack_work(model, work))
                has_news = True
            (self._had_work.add if has_work(work) else self._had_work.discard)(model)
        self._control.send(beat(self._loop_lag_s))
        return has_news


def has_work(work: Work) -> bool:
    """Whether a report says more than that nothing happens."""
    waits = work.oldest_wait_s > 0 or bool(work.queue_depths.any())
    counted = len(work.stages) or work.audits_settled or work.audits_skipped or work.cancelled
    return bool(counted) or waits or work.fault is not None


def run_engine(setup: ChildSetup) -> None:
    """Run the models that control names; the role of a child process.

    Its descriptors are the black box and the connection to control. Its settings hold the server's.
    """
    descriptor, control = setup.fds
    settings = Settings.model_validate(setup.settings["server"])
    black_box = BlackBox(descriptor)
    black_box.clear()
    spare_the_collector()
    uvloop.run(EngineHost(settings, socket.socket(fileno=control), black_box).run())


def open_runner(source: BundleSource, settings: Settings, facts: RunnerFacts | None) -> ModelRunner:
    """Load a model.

    Raises:
        ValueError: If it cannot be loaded.
    """
    return ModelRunner(open_source(source), settings, facts)


def runs_on_loop(facts: RunnerFacts) -> bool:
    """Whether batches had better run on the event loop than in a thread beside it."""
    longest_ms = LONGEST_ON_LOOP_MS if facts.device == "cpu" else LONGEST_ON_LOOP_OF_DEVICE_MS
    return bool(facts.costs.stages_ms.max() <= longest_ms)


def count_workers(runners: Sequence[ModelRunner], settings: Settings) -> int:
    """Return how many threads an engine has; the model with the shortest stage decides.

    Without models it is one: an engine for each core suits the small networks that leave early.
    """
    device = runners[0].facts.device if runners else device_names(settings)[0]
    plan = make_plan(settings, usable_cores(), (device,))
    if plan.engine_workers is not None:
        return plan.engine_workers
    workers = 1
    if runners:
        python_ms = TRANSPORT_FACTOR * min([runner.measure_overhead_ms() for runner in runners])
        stages_ms = [float(runner.facts.costs.stages_ms[:, 0].min()) for runner in runners]
        workers = workers_per_engine(min(stages_ms), python_ms, plan.runs)
    filled = fill_cores(plan, workers).engine_workers
    assert filled is not None, "a filled plan knows the threads of an engine"
    return filled
