"""A bundle's network in this process: backend, policies, engine, and what they report."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from models.backend import State
from models.bundle import Bundle
from models.preprocess import ImagePreprocessor
from scheduler.fitted import Scheduler
from server.engine.active_policy import ActivePolicy
from server.engine.engine import Engine
from server.engine.request import InferenceRequest, Shown
from server.engine.warmup import measure_costs, measure_overhead_ms, try_policy
from server.errors import ServeError
from server.loading import open_served, read_schedulers
from server.quality.auditor import Auditor
from server.reports import ExitScores, Floats, RunnerFacts, Work
from server.settings import Settings

log = logging.getLogger(__name__)

REMEMBERED_POLICIES = 8
STALLED_S = 10.0
OnDone = Callable[[list[InferenceRequest]], None]
OnStart = Callable[[Sequence[InferenceRequest]], None]
OnExits = Callable[[Shown], None]


class ModelRunner:
    """Runs one bundle's network. All methods but the callbacks belong to one thread.

    The constructor loads, warms up and measures what each exit costs on this host, unless another
    engine has done so; `start` and `stop` bracket serving.

    Args:
        bundle: A verified bundle.
        settings: The server's.
        facts: What another engine of this host has found out; None: this one finds out.
        clock: Seconds, monotonic.

    Raises:
        ValueError: If a graph or the scheduler cannot be read, or they do not fit together.

    Attributes:
        facts: What to expect of the network on this host.
        policy_version: Number of the policy that requests enter under.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        facts: RunnerFacts | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = bundle.manifest.name
        self.policy_version = 0
        self._clock = clock
        preprocess = bundle.preprocessor(**settings.image_bounds)
        self._example: State = preprocess.example
        # The network takes planes of floats, and fronts send pixels: a quarter of the bytes.
        self._normalises = (
            preprocess
            if isinstance(preprocess, ImagePreprocessor) and preprocess.dtype == "float32"
            else None
        )
        if facts is not None:
            settings = settings.model_copy(update={"precision": facts.precision})
        variant, backend = open_served(bundle, settings, self._example)
        first, *others = read_schedulers(variant, settings.policy).values()
        if facts is None:
            costs = measure_costs(
                backend, first.policy, self._example, settings.max_batch, first.combiner
            )
            workers = settings.workers_on(backend.device)
            facts = RunnerFacts(variant.precision, backend.device, costs, workers)
        else:
            try_policy(backend, first.policy, self._example, first.combiner)
        for other in others:
            try_policy(backend, other.policy, self._example, other.combiner)
        self.facts = facts
        self._observer = WorkObserver()
        self.engine = Engine(
            backend,
            first.policy,
            first.policy.never_exit_parameter,
            workers=facts.workers,
            max_batch=settings.max_batch or facts.costs.worthwhile_rows(),
            on_done=self._finished,
            on_audit=lambda audited: self.auditor.note(audited),
            on_exits=lambda shown: self._on_exits(shown),
            observer=self._observer,
            costs=facts.costs,
            clock=clock,
            on_put=lambda: self._on_put(),
            combiner=first.combiner,
        )
        self.auditor = Auditor()
        self._policies = {0: self.engine.active_policy}
        self._probe: InferenceRequest | None = None
        self._broken: str | None = None

    def measure_overhead_ms(self) -> float:
        """Measure what the engine takes for one row at a stage, beside the network."""
        active = self.engine.active_policy
        return measure_overhead_ms(
            self.engine.backend, active.policy, self._example, active.combiner
        )

    def set_workers(self, workers: int) -> None:
        """Set how many threads run batches; before `start`."""
        self.engine.workers = workers
        self.facts = self.facts._replace(workers=workers)

    def start(
        self,
        on_done: OnDone,
        on_start: OnStart = lambda requests: None,
        on_put: Callable[[], None] = lambda: None,
        on_exits: OnExits = lambda shown: None,
    ) -> None:
        """Start the workers.

        Args:
            on_done: Called by a worker once per batch with the requests that have ended.
            on_start: Called by a worker before it runs a stage for requests.
            on_put: Called whenever requests wait for a stage; without workers, somebody must then
                call `engine.run_batch`.
            on_exits: Called by a worker at an exit with the streamed requests of its batch.
        """
        self._on_done, self._observer.on_start, self._on_put = on_done, on_start, on_put
        self._on_exits = on_exits
        self.engine.start()

    def stop(self) -> None:
        """Answer the requests that are in, then end the workers; blocks."""
        self.engine.stop()

    def network_input(self, arrays: State) -> State:
        """Return what the network takes of rows that came over a connection."""
        if self._normalises is None or arrays[0].dtype == np.float32:  # a client's own planes
            return arrays
        return self._normalises.from_pixels(arrays)

    def submit(self, requests: Sequence[InferenceRequest]) -> None:
        """Let requests wait for stage 0, each under the policy that it entered with."""
        current = self.engine.active_policy
        for request in requests:
            request.policy = self._policies.get(request.policy_version)
            if request.policy is None:  # its parameter means nothing to any policy that is known
                request.policy, request.parameter = current, None
            if request.audit is not None and not self.auditor.accept(
                request.audit, request.policy_version
            ):
                request.audit = None
        self.engine.submit(requests)

    def cancel(self, requests: Sequence[InferenceRequest]) -> None:
        """Drop requests that nobody waits for any more."""
        self.engine.cancel(requests)
        for request in requests:
            if request.audit is not None:
                self.auditor.give_up(request.audit)

    def note_cancelled(self, count: int) -> None:
        """Count requests whose clients left before they were submitted; any thread may call."""
        self._observer.on_cancelled(count)

    def note_delivery(self, now_s: float, took_s: float) -> None:
        """Note how long finished requests took to where they are answered; any thread may call."""
        self.engine.deadlines.delivery.times.append((now_s, took_s))

    def set_parameter(self, parameter: float, queued: Sequence[float] = ()) -> None:
        """Move the policy's parameter; arguments as of `ActivePolicy.set`."""
        self.engine.active_policy.set(parameter, queued)

    def set_max_batch(self, rows: int) -> None:
        """Set the most rows of a batch."""
        self.engine.max_batch = rows

    async def try_scheduler(self, scheduler: Scheduler) -> None:
        """Run one row under another policy.

        Raises:
            ValueError: If that fails.
        """
        backend, example = self.engine.backend, self._example
        policy, _, combiner = scheduler
        await asyncio.to_thread(try_policy, backend, policy, example, combiner)

    def activate(self, scheduler: Scheduler, policy_version: int, parameter: float) -> None:
        """Switch requests that enter from now on to another policy."""
        active = ActivePolicy(scheduler.policy, parameter, scheduler.combiner)
        self._policies[policy_version] = active
        while len(self._policies) > REMEMBERED_POLICIES:
            del self._policies[min(self._policies)]
        self.engine.active_policy, self.policy_version = active, policy_version

    @property
    def is_quiet(self) -> bool:
        """Whether a report would say that nothing was done, nothing waits and all is well."""
        engine = self.engine
        return (
            not (self._observer.has_news or self.auditor.has_news or engine.failed)
            and self._probe is None
            and self._broken is None
            and engine.idle()
            and engine.alive
        )

    def take_work(self) -> Work:
        """Return what was done since the last call, and how things stand; probe after a failure."""
        self._probe_if_failed()
        audits = self.auditor.take()
        stages, rows, elapsed_ms = self._observer.take_steps()
        return Work(
            stages,
            rows,
            elapsed_ms,
            self._observer.take_scores(),
            *audits,
            self._observer.take_cancelled(),
            np.array(self.engine.queue_depths),
            self.engine.oldest_wait_s(),
            self.fault,
            self.stall is not None,
        )

    @property
    def fault(self) -> str | None:
        """Why the network cannot answer; None while it works."""
        return self._broken or self.stall

    @property
    def stall(self) -> str | None:
        """Why the engine should be restarted; None while it makes progress."""
        if not self.engine.alive:
            return f"an engine worker of {self.name} has died"
        silent_s = self._clock() - self.engine.last_progress_s
        if self.engine.oldest_wait_s() > STALLED_S and silent_s > STALLED_S:
            return f"the engine of {self.name} has made no progress for {STALLED_S:g} s"
        return None

    def _probe_if_failed(self) -> None:
        """After a failed batch run the warm-up input: the model is broken if that fails too."""
        if self._probe is not None:
            if self._probe.result is None:
                return
            failed = isinstance(self._probe.result, ServeError)
            self._broken = (
                f"{self.name} fails on every input; see the log and restart" if failed else None
            )
            self._probe, self.engine.failed = None, failed
        if self.engine.failed:
            self._probe = InferenceRequest(self._example, priority=0)
            self.engine.submit([self._probe])

    def _finished(self, requests: list[InferenceRequest]) -> None:
        """Hand over what has ended, but the probe; a worker calls."""
        for request in requests:
            if request.audit is not None and isinstance(request.result, ServeError):
                self.auditor.lose(request.audit)
        self._on_done([request for request in requests if request is not self._probe])


class WorkObserver:
    """Keeps the engine's reports until somebody takes them; any thread may call.

    Attributes:
        on_start: Called by a worker before it runs a stage for requests.
    """

    def __init__(self) -> None:
        self.on_start: OnStart = lambda requests: None
        self._steps: deque[tuple[int, int, float]] = deque()
        self._scores: deque[tuple[int, Floats, float]] = deque()
        self._cancelled: deque[int] = deque()

    @property
    def has_news(self) -> bool:
        """Whether anything is kept."""
        return bool(self._steps or self._scores or self._cancelled)

    def on_step(self, stage: int, rows: int, elapsed_ms: float) -> None:
        """Keep what one batch took at a stage."""
        self._steps.append((stage, rows, elapsed_ms))

    def on_scores(self, exit: int, scores: Floats, parameter: float) -> None:
        """Keep the scores of a batch at an exit."""
        self._scores.append((exit, scores, parameter))

    def on_cancelled(self, count: int) -> None:
        """Keep how many requests were dropped."""
        self._cancelled.append(count)

    def take_steps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return stage, rows and milliseconds of each batch since the last call, (B,) each."""
        steps = [self._steps.popleft() for _ in range(len(self._steps))]
        stages, rows, elapsed_ms = zip(*steps, strict=True) if steps else ((), (), ())
        return np.array(stages, np.int64), np.array(rows, np.int64), np.array(elapsed_ms, float)

    def take_scores(self) -> list[ExitScores]:
        """Return the scores since the last call."""
        return [ExitScores(*self._scores.popleft()) for _ in range(len(self._scores))]

    def take_cancelled(self) -> int:
        """Return how many requests were dropped since the last call."""
        return sum([self._cancelled.popleft() for _ in range(len(self._cancelled))])
