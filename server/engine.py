"""The serving loop: rows advance by stages and leave at the first exit that fires."""

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.backend import HeadOutput, StageBackend, State, join_states, row_of
from scheduler.policy import ExitPolicy
from server.errors import INTERNAL_DETAIL, DeadlineExceeded, InferenceFailed, ServeError
from server.metrics import ModelMetrics
from server.row import Answer, Completion, Row, TraceEntry

log = logging.getLogger(__name__)

RECENT_BATCHES = 256

Heap = list[tuple[int, int, Row]]  # priority, age
Shape = tuple[tuple[int, ...], ...]  # of one row's arrays


class _StageOutput(NamedTuple):
    state: State  # of A rows
    history: NDArray[np.float64]  # (A, H)
    said: HeadOutput  # of A rows
    scores: NDArray[np.float64]  # (A,)
    thresholds: NDArray[np.float64]  # (A,)
    leave: NDArray[np.bool_]  # (A,)
    elapsed_ms: float


class Engine:
    """Worker threads over one ready list per stage.

    A free worker takes the deepest stage that has rows ready, up to `max_batch` of them by priority
    and age, whatever requests they came with; nothing ever waits for a batch to fill. Rows of one
    batch are of one shape: texts of other lengths wait in a heap of their own. The policy's
    parameter is one reference that workers read once per batch, so that a change applies to every
    row at its next exit.

    Args:
        backend: Runs stages and heads.
        policy: Scores and decides.
        parameter: The policy's parameter in force.
        workers: Threads.
        max_batch: Most rows of a batch.
        metrics: Told of every batch.
        on_batch: Called by a worker once per batch that completed rows.
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
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.backend = backend
        self.policy = policy
        self.parameter = parameter
        self.max_batch = max_batch
        self.metrics = metrics
        self.on_batch = on_batch
        self.clock = clock
        self.failed = False
        self.beat_s = clock()
        self._ready: list[dict[Shape, Heap]] = [{} for _ in range(backend.num_exits)]
        self._recent_s: list[deque[float]] = [
            deque(maxlen=RECENT_BATCHES) for _ in range(backend.num_exits)
        ]
        self._order = itertools.count()
        self._condition = threading.Condition()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"engine-{index}", daemon=True)
            for index in range(workers)
        ]

    def start(self) -> None:
        """Start the workers."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish the rows that are in, then end the workers."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()

    @property
    def alive(self) -> bool:
        """Whether every worker runs."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def queue_depths(self) -> list[int]:
        """Rows waiting before each stage, (K,)."""
        return [sum(map(len, list(heaps.values()))) for heaps in self._ready]

    def oldest_wait_s(self) -> float:
        """Age of the row that has waited longest for its next stage; 0 when none waits."""
        with self._condition:
            heaps = [heap for stage in self._ready for heap in stage.values()]
            since = [row.ready_s for heap in heaps for _, _, row in heap]
        return max(self.clock() - min(since), 0.0) if since else 0.0

    def submit(self, rows: Sequence[Row]) -> None:
        """Put rows into stage 0's ready list; any thread may."""
        for row in rows:
            row.history = self.policy.start(1)
        self._push(rows)

    def _run(self) -> None:
        while batch := self._next_batch():
            completions = self._advance(batch)
            if completions:
                self.on_batch(completions)

    def _next_batch(self) -> list[Row]:
        """Wait for rows and take a batch of one stage; empty when stopping and nothing is left."""
        with self._condition:
            while (stage := self._deepest()) is None:
                if self._stopping:
                    return []
                self._condition.wait()
            shape, heap = min(stage.items(), key=lambda entry: entry[1][0])
            batch = [heapq.heappop(heap)[2] for _ in range(min(self.max_batch, len(heap)))]
            if not heap:
                del stage[shape]
        now = self.clock()
        self.beat_s = now
        for row in batch:
            row.queue_ms += (now - row.ready_s) * 1e3
        return batch

    def _deepest(self) -> dict[Shape, Heap] | None:
        return next((heaps for heaps in reversed(self._ready) if heaps), None)

    def _push(self, rows: Sequence[Row]) -> None:
        now = self.clock()
        with self._condition:
            for row in rows:
                row.ready_s = now
                shape = tuple(array.shape[1:] for array in row.state)
                heap = self._ready[row.stage].setdefault(shape, [])
                heapq.heappush(heap, (row.priority, next(self._order), row))
            self._condition.notify(len(rows))

    def _advance(self, batch: list[Row]) -> list[Completion]:
        """Take rows through their stage; return those that are done, queue the others."""
        rows, completions = self._drop_late(batch)
        if not rows:
            return completions
        started = self.clock()
        try:
            output = self._execute(rows, started)
        except Exception:
            return completions + self._fail(rows)
        self._record(rows, output)
        staying = []
        for index, row in enumerate(rows):
            answer = self._settle(row, index, output)
            if answer is not None:
                completions.append(Completion(row, answer))
            else:
                staying.append(row)
        if staying:
            self._push(staying)
        return completions

    def _drop_late(self, batch: list[Row]) -> tuple[list[Row], list[Completion]]:
        """Part the rows worth running from those already too late for any exit."""
        now = self.clock()
        late = [
            row.stage == 0 and row.deadline_s is not None and now >= row.deadline_s for row in batch
        ]
        rows = [row for row, gone in zip(batch, late, strict=True) if not gone]
        return rows, [
            Completion(row, _too_late()) for row, gone in zip(batch, late, strict=True) if gone
        ]

    def _execute(self, rows: list[Row], started: float) -> _StageOutput:
        """One stage, its head, the scores and the decision, for all rows at once."""
        stage = rows[0].stage
        history = np.concatenate([row.history for row in rows])
        state = self.backend.run_stage(stage, join_states([row.state for row in rows]))
        said = self.backend.run_head(stage, state)
        scored = self.policy.score(stage, said.log_probs, history)
        parameter = self.parameter
        parameters = np.array(
            [parameter if row.parameter is None else row.parameter for row in rows]
        )
        leave, thresholds = self.policy.decide(stage, scored, parameters)
        elapsed_ms = (self.clock() - started) * 1e3
        return _StageOutput(
            state, scored.history, said, scored.scores, thresholds, leave, elapsed_ms
        )

    def _record(self, rows: list[Row], output: _StageOutput) -> None:
        stage = rows[0].stage
        self.metrics.stage_latency[stage].observe(output.elapsed_ms / 1e3)
        self.metrics.batch_size[stage].observe(len(rows))
        self._recent_s[stage].append(self.clock() - min(row.ready_s for row in rows))

    def _settle(self, row: Row, index: int, output: _StageOutput) -> Answer | ServeError | None:
        """Book the stage on a row; its answer if it leaves here, None if it goes on."""
        exit = row.stage
        row.compute_ms += output.elapsed_ms
        if row.traced:
            numbers = (float(output.scores[index]), float(output.thresholds[index]), row.compute_ms)
            row.trace.append(TraceEntry(exit, output.said.log_probs[index], *numbers))
        now = self.clock()
        late = row.deadline_s is not None and now >= row.deadline_s
        if late and exit == 0:
            return _too_late()
        last = exit + 1 == self.backend.num_exits
        if output.leave[index] or last or self._must_leave(row, now):
            trace = row.trace if row.traced else None
            said = HeadOutput(output.said.logits[index], output.said.log_probs[index])
            return Answer(exit, said, row.compute_ms, row.queue_ms, late, trace)
        row.state, row.history = row_of(output.state, index), output.history[index : index + 1]
        row.stage += 1
        return None

    def _must_leave(self, row: Row, now: float) -> bool:
        """Whether the deadline would pass before the next exit, as slow as recent batches were."""
        if row.deadline_s is None:
            return False
        recent = list(self._recent_s[row.stage + 1])
        slow_s = float(np.percentile(recent, 99)) if recent else 0.0
        return now + slow_s > row.deadline_s

    def _fail(self, rows: list[Row]) -> list[Completion]:
        """Halve a failed batch until the row to blame stands alone, so that no other fails."""
        if len(rows) == 1:
            log.exception("stage %d failed on a row", rows[0].stage)
            self.failed = True
            return [Completion(rows[0], InferenceFailed(INTERNAL_DETAIL))]
        middle = len(rows) // 2
        return self._advance(rows[:middle]) + self._advance(rows[middle:])


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the deadline passed before the first exit; give more time or lower the load"
    )
