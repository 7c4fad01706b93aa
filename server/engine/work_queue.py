"""Where rows wait for workers, and workers for rows."""

import queue
import threading
from collections.abc import Callable, Sequence

from profiling.simulation.disciplines import BatchPriority
from server.engine.ready import StageQueues
from server.engine.request import InferenceRequest


class WorkQueue:
    """The ready lists of all stages, shared by threads.

    A worker that finds nothing sleeps, and is woken for a batch that no other will take: a thread
    that wakes on another core costs more than most of what the engine does for a row.

    Args:
        urgency: What batches are worth; its `max_batch` is the most rows of one.
        clock: Seconds, monotonic.
    """

    def __init__(self, urgency: BatchPriority, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # of the next three
        self._ready = StageQueues(urgency)
        self._sleepers = 0
        self._closed = False
        self._alarm = queue.SimpleQueue[None]()  # an entry wakes one sleeper

    def set_urgency(self, urgency: BatchPriority) -> None:
        """From the next batch on."""
        with self._lock:
            self._ready.urgency = urgency

    def put(self, rows: Sequence[InferenceRequest], taken: int = 0) -> None:
        """Let rows wait for their stage.

        Args:
            rows: Of one stage.
            taken: Batches that the caller will take itself: nobody need wake for them.
        """
        now = self._clock()
        with self._lock:
            for row in rows:
                row.ready_s = now
                self._ready.push(row)
            batches = -(-len(rows) // self._ready.urgency.max_batch)
            woken = min(max(batches - taken, 0), self._sleepers)
            self._sleepers -= woken
        for _ in range(woken):
            self._alarm.put(None)

    def get(self) -> list[InferenceRequest]:
        """Wait for a batch; empty once the queue is closed and holds nothing."""
        while True:
            with self._lock:
                if self._ready:
                    now = self._clock()
                    batch = self._ready.take(self._ready.urgency.max_batch, now)
                    break
                if self._closed:
                    return []
                self._sleepers += 1
            self._alarm.get()
        for row in batch:
            row.queue_ms += (now - row.ready_s) * 1e3
        return batch

    def remove(self, rows: Sequence[InferenceRequest]) -> int:
        """Take rows out; how many of them waited."""
        with self._lock:
            return len(self._ready.remove(rows))

    def close(self, workers: int) -> None:
        """Let so many workers end, once nothing waits."""
        with self._lock:
            self._closed = True
        for _ in range(workers):
            self._alarm.put(None)

    def idle(self) -> bool:
        """Whether no row but audits waits."""
        with self._lock:
            return not self._ready.users_wait

    def depths(self, num_stages: int) -> list[int]:
        """Rows waiting before each stage, (K,)."""
        with self._lock:
            return self._ready.depths(num_stages)

    def oldest_wait_s(self) -> float:
        """Age of the row that has waited longest for its next stage; 0 when none waits."""
        with self._lock:
            since = self._ready.oldest_s()
        return 0.0 if since is None else max(self._clock() - since, 0.0)
