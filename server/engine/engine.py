"""The serving loop: rows advance by stages and leave at the first exit that fires."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.backend import HeadOutput, OutOfMemory, StageBackend
from models.stage_costs import StageCosts
from scheduler.policy import ExitPolicy
from server.engine.active_policy import ActivePolicy
from server.engine.batch_limit import BatchLimit
from server.engine.deadlines import Deadlines, deadline_error
from server.engine.request import AUDIT, Completion, InferenceRequest, Prediction
from server.engine.shadow import ShadowRunner, record_exit
from server.engine.step import ExitOutput, StageExecutor, StageResult
from server.engine.trail import AuditResult
from server.engine.work_queue import WorkQueue
from server.errors import INTERNAL_DETAIL, InferenceFailed, ServeError
from server.metrics import ModelMetrics, ScoreNote

log = logging.getLogger(__name__)

Array = NDArray[np.float64]


class Engine:
    """Worker threads over one ready list per stage.

    A free worker takes the most urgent batch (`ReadyLists`), whatever requests its rows came with;
    nothing ever waits for a batch to fill. The policy's parameter is one reference that workers
    read once per batch, so that a change applies to every row at its next exit. Another policy, put
    in the place of `in_force`, is for rows that enter from then on.

    Args:
        backend: Runs stages and heads.
        policy: Scores and decides.
        parameter: The policy's parameter in force.
        workers: Threads.
        max_batch: Most rows of a batch; may be set while it runs, and is halved where memory ends.
        metrics: Told of every batch.
        on_batch: Called by a worker once per batch that completed rows.
        on_audit: Called by a worker once for every row with a trail that was answered.
        costs: What batches cost, to predict deadlines from before any has run.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        backend: StageBackend,
        policy: ExitPolicy,
        parameter: float,
        *,
        workers: int,
        max_batch: int,
        metrics: ModelMetrics,
        on_batch: Callable[[list[Completion]], None],
        on_audit: Callable[[AuditResult], None] = lambda audited: None,
        costs: StageCosts | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.backend = backend
        self.active_policy = ActivePolicy(policy, parameter)
        self.metrics = metrics
        self.on_batch = on_batch
        self.clock = clock
        self.failed = False
        self.last_progress_s = clock()
        self._step = StageExecutor(backend)
        self._limit = BatchLimit(backend.num_exits, costs, max_batch)
        self.deadlines = Deadlines(backend.num_exits, costs, max_batch)
        self._queue = WorkQueue(self._limit.urgency(), clock)
        # Nobody is woken for audits: whoever puts them takes them, once there is slack.
        self._beyond = ShadowRunner(
            backend, lambda rows: self._queue.put(rows, len(rows)), on_audit
        )
        self._threads = [
            threading.Thread(target=self.run, name=f"engine-{index}", daemon=True)
            for index in range(workers)
        ]

    def start(self) -> None:
        """Start the workers."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish the rows that are in, audits left out, then end the workers."""
        self._beyond.stop()
        self._queue.close(len(self._threads))
        for thread in self._threads:
            thread.join()

    @property
    def alive(self) -> bool:
        """Whether every worker runs."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def policy(self) -> ExitPolicy:
        """The policy that rows enter under."""
        return self.active_policy.policy

    @property
    def parameter(self) -> float:
        """The policy's parameter in force."""
        return self.active_policy.snapshot.parameter

    @parameter.setter
    def parameter(self, value: float) -> None:
        self.active_policy.set(value)

    @property
    def max_batch(self) -> int:
        """Most rows of a batch, as far as memory is known to go."""
        return self._limit.rows

    @max_batch.setter
    def max_batch(self, rows: int) -> None:
        if self._limit.ask(rows):
            self._queue.set_urgency(self._limit.urgency())

    def idle(self) -> bool:
        """Whether nobody's row waits for a worker."""
        return self._queue.idle()

    @property
    def queue_depths(self) -> list[int]:
        """Rows waiting before each stage, (K,)."""
        return self._queue.depths(self.backend.num_exits)

    def oldest_wait_s(self) -> float:
        """Age of the row that has waited longest for its next stage; 0 when none waits."""
        return self._queue.oldest_wait_s()

    def submit(self, rows: Sequence[InferenceRequest]) -> None:
        """Put rows into stage 0's ready list; any thread may."""
        now, in_force = self.clock(), self.active_policy
        for row in rows:
            row.arrived_s = now
            row.policy = row.policy or in_force
            row.history = row.policy.policy.start(1)
            row.shape = tuple(array.shape[1:] for array in row.state)
        self._queue.put(rows)

    def cancel(self, rows: Sequence[InferenceRequest]) -> None:
        """Drop rows that nobody waits for any more; any thread may.

        Those that wait are gone at once, those in a batch at its end. They are counted and never
        completed.
        """
        for row in rows:
            row.cancelled = True
        self.metrics.cancelled.inc(self._queue.remove(rows))

    def run(self) -> None:
        """Advance rows until the queue is closed and empty; what every worker does."""
        while batch := self._queue.get():
            self.last_progress_s = self.clock()
            if batch[0].priority == AUDIT:
                self._beyond.advance(batch)
                continue
            try:
                completions = self._advance(batch)
            except Exception:  # of our own; whatever it is, the rows are told and the worker lives
                log.exception("a batch of stage %d was lost", batch[0].stage)
                completions = self._give_up(batch)
            if completions:
                self._tell(completions)
                self._beyond.start(completions)

    def _tell(self, completions: list[Completion]) -> None:
        try:
            self.on_batch(completions)
        except Exception:
            log.exception("%d completed rows could not be told", len(completions))
            self.failed = True

    def _give_up(self, batch: list[InferenceRequest]) -> list[Completion]:
        """Fail those rows of a batch that wait for no further stage."""
        self.failed = True
        self._queue.remove(batch)
        return [Completion(row, InferenceFailed(INTERNAL_DETAIL)) for row in batch]

    def _advance(self, batch: list[InferenceRequest], taken: int = 1) -> list[Completion]:
        """Take rows through their stage; return those that are done, queue the others.

        Behind an exit that none of them needs, they go straight on to the next.
        """
        completions: list[Completion] = []
        while batch:
            started = self.clock()
            rows = self._worth_running(batch, started, completions)
            if not rows:
                break
            try:
                output = self._step(rows)
                elapsed_ms = (self.clock() - started) * 1e3
            except OutOfMemory as error:
                return completions + self._shrink(rows, error)
            except Exception:
                return completions + self._bisect(rows)
            self._record(rows, output, elapsed_ms)
            batch = self._settle(rows, output, elapsed_ms, completions)
            if batch and output.shown is not None:
                self._queue.put(batch, taken)
                break
            self.last_progress_s = self.clock()
            for row in batch:
                row.ready_s = self.last_progress_s
        return completions

    def _worth_running(
        self, batch: list[InferenceRequest], now: float, completions: list[Completion]
    ) -> list[InferenceRequest]:
        """The rows that are neither cancelled nor, completed with that, too late for any exit."""
        rows = []
        for row in batch:
            if row.cancelled:
                self.metrics.cancelled.inc()
            elif row.stage == 0 and row.deadline_s is not None and now >= row.deadline_s:
                completions.append(Completion(row, deadline_error()))
            else:
                rows.append(row)
        return rows

    def _record(self, rows: list[InferenceRequest], output: StageResult, elapsed_ms: float) -> None:
        stage = rows[0].stage
        self.metrics.note_batch(stage, len(rows), elapsed_ms)
        self.deadlines.note_batch(rows, self.clock())
        if output.shown is not None and rows[0].policy is self.active_policy:
            scores = output.shown.common_scores(rows)
            if scores is not None:
                self.metrics.note_scores(ScoreNote(stage, scores, output.parameter))

    def _settle(
        self,
        rows: list[InferenceRequest],
        output: StageResult,
        elapsed_ms: float,
        completions: list[Completion],
    ) -> list[InferenceRequest]:
        """Book the stage on its rows; complete those that leave here, return the others."""
        state, history, blinds, _, shown = output
        staying = []
        for place, row in enumerate(rows):
            row.compute_ms += elapsed_ms
            if row.audit is not None:
                record_exit(row.audit, row, place, output)
            answer = None if shown is None else self._answer(row, place, shown)
            if row.cancelled:
                self.metrics.cancelled.inc()
            elif answer is not None:
                row.state = ()  # nothing of it is needed while the answer waits to be told
                completions.append(Completion(row, answer))
            else:
                row.state, row.history, row.place = state, history, place
                row.run_to_end = row.run_to_end or blinds
                row.stage += 1
                staying.append(row)
        return staying

    def _answer(
        self, row: InferenceRequest, place: int, shown: ExitOutput
    ) -> Prediction | ServeError | None:
        """What a row that leaves here is told; None if it goes on."""
        if row.traced:
            row.trace.append(shown.entry(row, place))
        leaves, late = shown.leave[place], False
        if row.deadline_s is not None:
            now = self.clock()
            late = now >= row.deadline_s
            if late and row.stage == 0:
                return deadline_error()
            leaves = leaves or self.deadlines.would_miss_next_exit(row, now)
        if not leaves:
            return None
        trace = row.trace if row.traced else None
        said = HeadOutput(shown.said.logits[place], shown.said.log_probs[place])
        return Prediction(row.stage, said, row.compute_ms, row.queue_ms, late, trace)

    def _shrink(self, rows: list[InferenceRequest], error: OutOfMemory) -> list[Completion]:
        """Where memory ended, go on with batches of half the size."""
        if len(rows) > 1:
            fits = self._limit.halve(len(rows))
            self._queue.set_urgency(self._limit.urgency())
            log.warning("memory ended at %d rows; batches of %d from now on: %s",
                        len(rows), fits, error)  # fmt: skip
        return self._bisect(rows)

    def _bisect(self, rows: list[InferenceRequest]) -> list[Completion]:
        """Halve a failed batch until the row to blame stands alone, so that no other fails."""
        if len(rows) == 1 and rows[0].cancelled:
            self.metrics.cancelled.inc()
            return []
        if len(rows) == 1:
            log.exception("stage %d failed on a row", rows[0].stage)
            self.failed = True
            return [Completion(rows[0], InferenceFailed(INTERNAL_DETAIL))]
        middle = len(rows) // 2
        return self._advance(rows[:middle], taken=0) + self._advance(rows[middle:])
