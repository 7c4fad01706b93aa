"""The serving loop: requests advance by stages and leave at the first exit that fires."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from models.backend import HeadOutput, OutOfMemory, StageBackend, State
from models.stage_costs import StageCosts
from scheduler.combiner import OWN_OUTPUTS, Combiner
from scheduler.policy import ExitDecision, ExitPolicy
from server.engine.active_policy import ActivePolicy, PolicySnapshot
from server.engine.batch_limit import BatchLimit
from server.engine.deadlines import Deadlines, deadline_error
from server.engine.observer import EngineObserver, NullObserver
from server.engine.queue import WorkQueue
from server.engine.request import (
    AUDIT,
    NO_HISTORY,
    AuditResult,
    InferenceRequest,
    Prediction,
    Shown,
    StageTiming,
)
from server.engine.shadow import ShadowRunner, record_exit
from server.engine.step import Array, StageExecutor, comparable_scores, trace_exit
from server.errors import INTERNAL_DETAIL, InferenceFailed, ServeError

log = logging.getLogger(__name__)


class Engine:
    """Worker threads over one queue per stage.

    A free worker takes the batch of the highest priority (`StageQueues`), whatever requests its
    rows arrived with; nothing ever waits for a batch to fill. The policy's parameter is one
    reference that workers read once per batch, so a change applies to every request at its next
    exit. Another policy, assigned to `active_policy`, is for requests that enter from then on.

    Args:
        backend: Runs stages and heads.
        policy: Scores and decides.
        parameter: Initial value of the policy's parameter.
        workers: Number of threads.
        max_batch: Most rows of a batch; may be set while it runs, and is halved when memory runs
            out.
        on_done: Called by a worker once per batch that finished requests; each has its `result`.
        on_audit: Called by a worker once for every audited request that was answered.
        on_exits: Called by a worker at an exit with the streamed requests of its batch, before they
            enter the next stage and before `on_done`.
        observer: Receives counts.
        costs: What batches cost, to predict deadlines before any batch has run.
        clock: Seconds, monotonic.
        on_put: Called whenever requests wait for a stage; without threads it must see to it that
            `run_batch` is called.
        combiner: Fitted together with the policy: turns outputs of heads into answers.

    Attributes:
        workers: Number of threads; may be set until they start. 0: the caller runs batches.
        failed: Whether a batch has failed since somebody reset it.
        last_progress_s: When a worker last began a stage.
    """

    def __init__(
        self,
        backend: StageBackend,
        policy: ExitPolicy,
        parameter: float,
        *,
        workers: int,
        max_batch: int,
        on_done: Callable[[list[InferenceRequest]], None],
        on_audit: Callable[[AuditResult], None] = lambda audit: None,
        on_exits: Callable[[Shown], None] = lambda shown: None,
        observer: EngineObserver | None = None,
        costs: StageCosts | None = None,
        clock: Callable[[], float] = time.perf_counter,
        on_put: Callable[[], None] = lambda: None,
        combiner: Combiner = OWN_OUTPUTS,
    ) -> None:
        self.backend = backend
        self.active_policy = ActivePolicy(policy, parameter, combiner)
        self.clock = clock
        self.failed = False
        self.last_progress_s = clock()
        self.deadlines = Deadlines(backend.num_exits, costs, max_batch)
        self._on_done, self._on_exits = on_done, on_exits
        self._observer = observer or NullObserver()
        self._executor = StageExecutor(backend)
        self._limit = BatchLimit(backend.num_exits, costs, max_batch)
        self._queue = WorkQueue(self._limit.priority(), clock, on_put)
        # No worker is woken for shadows: the worker that puts them takes them once it is idle.
        self._shadows = ShadowRunner(
            backend, lambda shadows: self._queue.put(shadows, len(shadows)), on_audit
        )
        self.workers = workers
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the workers."""
        for index in range(self.workers):
            thread = threading.Thread(target=self.run, name=f"engine-{index}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Finish the requests that are in, drop the audits, then end the workers."""
        self._shadows.stop()
        self._queue.close(len(self._threads))
        for thread in self._threads:
            thread.join()
        while not self._threads and self.run_batch():
            pass

    @property
    def alive(self) -> bool:
        """Whether every worker runs."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def policy(self) -> ExitPolicy:
        """The policy that requests enter under."""
        return self.active_policy.policy

    @property
    def parameter(self) -> float:
        """The active value of the policy's parameter."""
        return self.active_policy.snapshot.parameter

    @parameter.setter
    def parameter(self, value: float) -> None:
        self.active_policy.set(value)

    @property
    def max_batch(self) -> int:
        """Most rows of a batch, as far as memory is known to allow."""
        return self._limit.rows

    @max_batch.setter
    def max_batch(self, rows: int) -> None:
        if self._limit.ask(rows):
            self._queue.set_priority(self._limit.priority())

    def idle(self) -> bool:
        """Whether no user's request waits for a worker."""
        return self._queue.idle()

    @property
    def queue_depths(self) -> list[int]:
        """Requests waiting for each stage, (K,)."""
        return self._queue.depths(self.backend.num_exits)

    def oldest_wait_s(self) -> float:
        """Return the longest time that a request has waited for its stage; 0 when none waits."""
        return self._queue.oldest_wait_s()

    def submit(self, requests: Sequence[InferenceRequest]) -> None:
        """Let requests wait for stage 0; any thread may call."""
        now, active = self.clock(), self.active_policy
        state: State | None = None
        policy: ActivePolicy | None = None
        for request in requests:
            request.arrived_s = now
            entered = request.policy or active
            if request.state is not state or entered is not policy:  # rows may share their arrays
                state, policy = request.state, entered
                history = policy.policy.start(len(state[0]))
                memory = policy.combiner.start(len(state[0]))
                shape = tuple([array.shape[1:] for array in state])
            request.policy, request.shape = entered, shape
            request.history, request.memory = history, memory
        self._queue.put(requests)

    def cancel(self, requests: Sequence[InferenceRequest]) -> None:
        """Drop requests that nobody waits for any more; any thread may call.

        Those that wait for a stage go at once, those in a batch when it ends. They are counted and
        never handed over.
        """
        for request in requests:
            request.cancelled = True
        if dropped := self._queue.remove(requests):
            self._observer.on_cancelled(dropped)

    def run(self) -> None:
        """Advance batches until the queues are closed and empty; every worker's loop."""
        while batch := self._queue.get():
            self._run(batch)

    def run_batch(self) -> bool:
        """Advance the next batch by a stage in this thread; return False if none waits."""
        batch = self._queue.take()
        if batch:
            self._run(batch)
        return bool(batch)

    def _run(self, batch: list[InferenceRequest]) -> None:
        self.last_progress_s = self.clock()
        if batch[0].priority == AUDIT:
            self._shadows.advance(batch)
            return
        try:
            finished = self._advance(batch)
        except Exception:  # A bug in our code: fail this batch, keep the worker running.
            log.exception("a batch of stage %d failed", batch[0].stage)
            finished = self._fail(batch)
        if finished:
            self._deliver(finished)
            if audited := [request for request in finished if request.audit is not None]:
                self._shadows.start(audited)

    def _deliver(self, finished: list[InferenceRequest]) -> None:
        try:
            self._on_done(finished)
        except Exception:
            log.exception("%d finished requests could not be handed over", len(finished))
            self.failed = True

    def _show(self, shown: Shown) -> None:
        """Hand over what streamed requests passed; not of those that were too late for it."""
        try:
            self._on_exits([each for each in shown if not isinstance(each[0].result, ServeError)])
        except Exception:
            log.exception("%d outputs of an exit could not be handed over", len(shown))

    def _fail(self, batch: list[InferenceRequest]) -> list[InferenceRequest]:
        """Fail a whole batch, wherever its requests wait."""
        self.failed = True
        self._queue.remove(batch)
        for request in batch:
            request.result = InferenceFailed(INTERNAL_DETAIL)
        return batch

    def _advance(self, batch: list[InferenceRequest], claimed: int = 1) -> list[InferenceRequest]:
        """Take requests through their stage; return those that are done, queue the others.

        After an exit whose head none of them needs, they go straight on to the next stage.
        """
        finished: list[InferenceRequest] = []
        while batch:
            started_s = self.clock()
            requests = self._drop_stale(batch, started_s, finished)
            if not requests:
                break
            head: HeadOutput | None = None
            answer: HeadOutput | None = None
            memory: Array | None = None
            decision: ExitDecision | None = None
            self._observer.on_start(requests)
            try:
                state = self._executor.run_stage(requests)
                active = requests[0].policy
                assert active is not None, "requests enter under a policy"
                snapshot = self._in_force(active)  # after the stage: the latest one applies
                if self._executor.needs_head(requests, snapshot):
                    head = self._executor.run_head(requests[0].stage, state, len(requests))
                    memory = self._executor.remember(requests, head, snapshot)
                    answer = self._executor.answer(requests, head, memory, snapshot)
                    decision = self._executor.decide(requests, answer, snapshot)
            except OutOfMemory as error:
                return finished + self._retry_smaller(requests, error)
            except Exception:
                return finished + self._bisect(requests)
            elapsed_ms = (self.clock() - started_s) * 1e3
            self._report(requests, decision, active, snapshot.parameter, elapsed_ms)
            _keep(requests, state, head, memory, snapshot.parameter)
            batch = self._finish_stage(requests, state, answer, decision)
            finished += [request for request in requests if request.result is not None]
            if batch and answer is not None:
                self._queue.put(batch, claimed)
                break
            self.last_progress_s = self.clock()
            for request in batch:
                request.ready_s = self.last_progress_s
        return finished

    def _in_force(self, active: ActivePolicy) -> PolicySnapshot:
        """Return the parameter of now, which may depend on how many requests wait."""
        if not active.heeds_queue:
            return active.snapshot
        return active.at(self._queue.depth() / max(self.workers, 1))

    def _drop_stale(
        self,
        batch: list[InferenceRequest],
        now_s: float,
        finished: list[InferenceRequest],
    ) -> list[InferenceRequest]:
        """Return the requests worth running: neither cancelled nor too late for any exit."""
        requests, rows = [], len(batch)
        for request in batch:
            if request.cancelled:
                self._observer.on_cancelled(1)
                rows -= 1
            elif (
                request.deadline_s is not None
                and request.stage == 0
                and self.deadlines.would_miss_first_exit(request, now_s, rows)
            ):
                request.result = deadline_error()
                finished.append(request)
                rows -= 1  # which gives the others time
            else:
                requests.append(request)
        return requests

    def _report(
        self,
        requests: list[InferenceRequest],
        decision: ExitDecision | None,
        active: ActivePolicy,
        parameter: float,
        elapsed_ms: float,
    ) -> None:
        stage, now_s = requests[0].stage, self.clock()
        for request in requests:
            request.compute_ms += elapsed_ms
            if request.timings is not None:
                started_s, rows = now_s - elapsed_ms / 1e3, len(requests)
                request.timings.append(StageTiming(stage, request.ready_s, started_s, now_s, rows))
        self._observer.on_step(stage, len(requests), elapsed_ms)
        took_s = now_s - min([request.ready_s for request in requests])
        self.deadlines.stages[stage].times.append((now_s, took_s))
        if stage == 0 and requests[0].deadline_s is not None:
            self.deadlines.note_first_run(len(requests), now_s, elapsed_ms / 1e3)
        if decision is not None and active is self.active_policy:
            scores = comparable_scores(requests, decision)
            if scores is not None:
                self._observer.on_scores(stage, scores, parameter)

    def _finish_stage(
        self,
        requests: list[InferenceRequest],
        state: State,
        answer: HeadOutput | None,
        decision: ExitDecision | None,
    ) -> list[InferenceRequest]:
        """Set the results of requests that leave here; return those that go to the next stage.

        Args:
            requests: The batch, before it moves on.
            state: The batch after its stage.
            answer: What those that leave are answered with; None where the head was skipped.
            decision: The policy's; None where no request was scored.
        """
        leave = [requests[0].stage == self.backend.num_exits - 1] * len(requests)
        if decision is not None and not leave[0]:
            leave = decision.leave.tolist()
        staying: list[InferenceRequest] = []
        shown: Shown = []
        for place, request in enumerate(requests):
            if request.cancelled:
                self._observer.on_cancelled(1)
                continue
            if answer is not None:
                if request.traced and decision is not None:
                    request.trace.append(trace_exit(request, place, answer, decision))
                    if request.streamed:
                        shown.append((request, request.trace[-1]))
                request.result = self._result(request, place, answer, leave[place])
            if request.result is None:
                request.place, request.state = place, state
                staying.append(request)
            else:
                # Frees the batch while the result waits to be handed over.
                request.state, request.memory = (), NO_HISTORY
        if staying:
            self._move_on(staying, decision, len(requests))
        if shown:
            self._show(shown)
        return staying

    def _move_on(
        self, staying: list[InferenceRequest], decision: ExitDecision | None, rows: int
    ) -> None:
        """Move requests to the next stage, with what the policy remembers of the batch."""
        active = staying[0].policy
        assert active is not None, "requests enter under a policy"
        skipped = decision is None and active.has_history
        history = active.policy.start(rows) if decision is None else decision.history
        for request in staying:
            request.history = history
            request.run_to_end = request.run_to_end or skipped
            request.stage += 1

    def _result(
        self, request: InferenceRequest, place: int, answer: HeadOutput, leaves: bool
    ) -> Prediction | ServeError | None:
        """Return the prediction or error of a request that leaves here; None if it stays."""
        late = False
        if request.deadline_s is not None:
            now_s = self.clock()
            if _is_too_late(request, now_s):
                return deadline_error()
            late = now_s >= request.deadline_s
            leaves = leaves or self.deadlines.would_miss_next_exit(request, now_s)
        if not leaves:
            return None
        trace = request.trace if request.traced else None
        return Prediction(
            request.stage, answer, place, request.compute_ms, request.queue_ms, late, trace
        )

    def _retry_smaller(
        self, requests: list[InferenceRequest], error: OutOfMemory
    ) -> list[InferenceRequest]:
        """Retry with batches of half the size after memory ran out."""
        if len(requests) > 1:
            fits = self._limit.halve(len(requests))
            self._queue.set_priority(self._limit.priority())
            log.warning("out of memory with a batch of %d; batches are limited to %d from now on: "
                        "%s", len(requests), fits, error)  # fmt: skip
        return self._bisect(requests)

    def _bisect(self, requests: list[InferenceRequest]) -> list[InferenceRequest]:
        """Halve a failed batch until the request to blame stands alone, so that no other fails."""
        if len(requests) > 1:
            middle = len(requests) // 2
            first = self._advance(requests[:middle], claimed=0)
            return first + self._advance(requests[middle:])
        (request,) = requests
        if request.cancelled:
            self._observer.on_cancelled(1)
            return []
        log.exception("stage %d failed on a request", request.stage)
        self.failed = True
        request.result = InferenceFailed(INTERNAL_DETAIL)
        return [request]


def _keep(
    requests: list[InferenceRequest],
    state: State,
    head: HeadOutput | None,
    memory: Array | None,
    parameter: float,
) -> None:
    """Keep what a head showed: for audits its own output, for later exits the combiner's memory."""
    for place, request in enumerate(requests):
        if memory is not None:
            request.memory = memory
        if request.audit is not None:
            own = parameter if request.parameter is None else request.parameter
            record_exit(request.audit, place, state, head, own)


def _is_too_late(request: InferenceRequest, now_s: float) -> bool:
    """Whether the deadline passed before the first exit."""
    return request.stage == 0 and request.deadline_s is not None and now_s >= request.deadline_s
