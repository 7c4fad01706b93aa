"""The engine process: runs the networks for all front-ends, and reports to control."""

import asyncio
import functools
import logging
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import uvloop

from server.cores import usable_cores
from server.engine.request import ExitTrace, InferenceRequest, Shown
from server.lifespan import (
    HEARTBEAT_S,
    QUIET_BEAT_S,
    load_bundles,
    spare_the_collector,
    until_next_s,
)
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
)
from server.processes.plan import fill_cores, make_plan, workers_per_engine
from server.processes.wire import Message, beat, encode
from server.processes.zygote import ChildSetup
from server.reports import RunnerFacts, Work
from server.runner import ModelRunner
from server.settings import Settings
from server.shortage import shortage_of

log = logging.getLogger(__name__)

# Python for a row that comes over a connection, against the engine's and the policy's alone.
TRANSPORT_FACTOR = 4
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
        runners: Those of the models, in the order of the bundles.
        control: The connection to the control process.
        black_box: Where to note what is being executed.
        clock: Seconds, monotonic; shared by all processes of the host.
    """

    def __init__(
        self,
        runners: list[ModelRunner],
        control: socket.socket,
        black_box: BlackBox,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._runners = runners
        self._clock = clock
        self._black_box = black_box
        self._fronts: set[FrontLink] = set()
        self._control_socket = control
        self._ended = asyncio.Event()
        self._had_work = set(range(len(runners)))  # so that the first report is whole
        self._trials: set[asyncio.Future[None]] = set()
        self._runs_batches = False  # whether this loop is about to
        self._beat_at_s: float | None = None  # when the next beat is due
        self._loop_lag_s = 0.0  # of the latest beat
        self._acts: dict[str, Callable[[Message, list[int]], None]] = {
            "front": self._connect,
            "parameter": self._set_parameter,
            "max_batch": self._set_max_batch,
            "activate": self._activate,
            "try": self._try,
            "flush": self._flush,
            "stop": lambda message, fds: self._ended.set(),
        }

    async def run(self) -> None:
        """Serve until control says so or is gone."""
        self._loop = asyncio.get_running_loop()
        self._on_loop = [each for each in self._runners if each.engine.workers == 0]
        self._control = Channel(self._control_socket, self._loop, self._obey, self._ended.set)
        for model, runner in enumerate(self._runners):
            runner.auditor.on_accept = functools.partial(self._black_box.count_draw, model)
            runner.start(self._finished, self._note_start, self._run_batches_soon, self._show)
        spare_the_collector()
        facts = [facts_fields(runner.facts) for runner in self._runners]
        self._control.send(Message("ready", {"facts": facts}))
        self._beat()
        await self._ended.wait()
        self._next_beat.cancel()
        for runner in self._runners:
            runner.stop()
        self._report()

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
        runner = self._runners[message.fields["model"]]
        if delivery := message.fields["delivery"]:
            runner.note_delivery(*delivery)
        requests = unpack_requests(message, link, runner.network_input)
        for request in requests:
            link.requests[request.number] = runner, request
        runner.submit(requests)

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

    def _try(self, message: Message, fds: list[int]) -> None:
        task = asyncio.ensure_future(self._try_scheduler(message))
        self._trials.add(task)
        task.add_done_callback(self._trials.discard)

    async def _try_scheduler(self, message: Message) -> None:
        fault = None
        try:
            runner = self._runners[message.fields["model"]]
            await runner.try_scheduler(unpack_scheduler(message))
        except ValueError as error:
            fault = str(error)
        reply = {"number": message.fields["number"], "fault": fault}
        self._control.send(Message("reply", reply))

    def _flush(self, message: Message, fds: list[int]) -> None:
        self._report()
        self._control.send(Message("reply", {"number": message.fields["number"]}))

    def _report(self) -> bool:
        """Tell control what was done; without news, that this engine is alive: return False."""
        has_news = False
        for model, runner in enumerate(self._runners):
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
    """Load the models and run them; the role of a child process.

    Its descriptors are the black box and the connection to control. Its settings hold the server's,
    and what another engine has found out about each model, or nothing.
    """
    descriptor, control = setup.fds
    settings = Settings.model_validate(setup.settings["server"])
    known: list[dict[str, Any]] = setup.settings["facts"]
    sock = socket.socket(fileno=control)
    try:
        bundles = load_bundles(settings.bundle).values()
        facts: list[RunnerFacts | None] = [facts_of(each) for each in known]
        facts = facts or [None] * len(bundles)
        runners = [
            ModelRunner(bundle, settings, each) for bundle, each in zip(bundles, facts, strict=True)
        ]
    except (ValueError, MemoryError, RuntimeError, OSError) as error:
        shortage = shortage_of(error)
        if shortage is None and not isinstance(error, ValueError):
            raise
        _tell(sock, shortage or str(error))
        raise SystemExit(1) from error
    workers = _count_workers(runners, settings)
    for runner in runners:
        runner.set_workers(workers)
        if workers == 1 and runs_on_loop(runner.facts):
            runner.engine.workers = 0
    black_box = BlackBox(descriptor)
    black_box.clear()
    uvloop.run(EngineHost(runners, sock, black_box).run())


def runs_on_loop(facts: RunnerFacts) -> bool:
    """Whether batches had better run on the event loop than in a thread beside it."""
    longest_ms = LONGEST_ON_LOOP_MS if facts.device == "cpu" else LONGEST_ON_LOOP_OF_DEVICE_MS
    return bool(facts.costs.stages_ms.max() <= longest_ms)


def _count_workers(runners: Sequence[ModelRunner], settings: Settings) -> int:
    """Return how many threads an engine has; the model with the shortest stage decides."""
    device = runners[0].facts.device
    plan = make_plan(settings, usable_cores(), (device,))
    if plan.engine_workers is not None:
        return plan.engine_workers
    python_ms = TRANSPORT_FACTOR * min([runner.measure_overhead_ms() for runner in runners])
    stages_ms = [float(runner.facts.costs.stages_ms[:, 0].min()) for runner in runners]
    workers = workers_per_engine(min(stages_ms), python_ms, plan.runs)
    filled = fill_cores(plan, workers).engine_workers
    assert filled is not None, "a filled plan knows the threads of an engine"
    return filled


def _tell(control: socket.socket, fault: str) -> None:
    """Tell control why this engine cannot start."""
    for part in encode(Message("failed", {"fault": fault})):
        control.sendall(part)
