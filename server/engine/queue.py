"""Where requests wait for a stage, and workers for requests."""

import queue
import threading
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from scheduler.batching import BatchPriority, QueuedBatch, choose_batch
from server.engine.active_policy import ActivePolicy
from server.engine.request import AUDIT, InferenceRequest, Shape

Key = tuple[int, Shape, bool, ActivePolicy | None]  # stage, shape, run to end, policy
DEADLINE_HORIZON_PASSES = 1.5  # full batches through the whole network
SPARE_QUEUES = 16
AUDIT_PATIENCE_S, AUDIT_EVERY = 1.0, 16  # an audit's wait, and batches from one to the next


class StageQueue:
    """Requests that may share a batch, in order of arrival, and those with deadlines by deadline.

    They wait for the same stage, have inputs of the same shape and run under the same policy.
    """

    def __init__(self) -> None:
        self._requests = OrderedDict[InferenceRequest, None]()  # any can be removed in O(1)
        self._by_deadline: list[InferenceRequest] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request: InferenceRequest) -> bool:
        return request in self._requests

    @property
    def first(self) -> InferenceRequest:
        """The request that arrived first; the queue must not be empty."""
        return next(iter(self._requests))

    @property
    def deadline_s(self) -> float | None:
        """The earliest deadline; None where no request has one."""
        return self._by_deadline[0].deadline_s if self._by_deadline else None

    def push(self, request: InferenceRequest) -> None:
        """Add a request."""
        self._requests[request] = None
        if request.deadline_s is not None:
            insort(self._by_deadline, request, key=_deadline_s)

    def remove(self, request: InferenceRequest) -> None:
        """Remove a request that waits here."""
        del self._requests[request]
        if request.deadline_s is not None:
            self._by_deadline.remove(request)

    def take(self, limit: int, *, by_deadline: bool) -> list[InferenceRequest]:
        """Remove and return the first requests, up to `limit`; the earliest deadlines first if so.

        Args:
            limit: The most requests to take.
            by_deadline: Whether requests with deadlines go before the others.
        """
        taken = self._by_deadline[:limit] if by_deadline else []
        for request in taken:
            del self._requests[request]
        del self._by_deadline[: len(taken)]
        while self._requests and len(taken) < limit:
            request, _ = self._requests.popitem(last=False)
            taken.append(request)
            if request.deadline_s is not None:
                self._by_deadline.remove(request)
        return taken


class StageQueues:
    """Every stage's waiting requests, and which of them go next. Not thread-safe.

    Requests of a better priority go before all others. Among those of one priority, the batch goes
    next that `choose_batch` picks; free places of a batch go to requests of lower priority that
    may share it.

    Audits are below the last priority; they have no policy, so they share no batch with users'
    requests. So that all of them end, also where users' requests always wait, one that has waited
    for a second goes before them, at most once in 16 batches.

    Requests whose deadline is near go before the others of their priority: first those that have no
    answer yet, then by deadline. While any request has waited beyond the overtaking limit, every
    other batch goes by `choose_batch` nevertheless, so that deadlines starve nobody.

    Args:
        priority: Priorities of batches; may be replaced at any time.
    """

    def __init__(self, priority: BatchPriority) -> None:
        self.priority = priority
        self._levels: list[dict[Key, StageQueue]] = [{} for _ in range(AUDIT + 1)]
        self._spare: list[StageQueue] = []  # empty ones: most queues hold one request at a time
        self._went_by_deadline = [False] * (AUDIT + 1)  # whether the batch before did
        self._since_audit = 0  # batches

    def __bool__(self) -> bool:
        return any(self._levels)

    def push(self, request: InferenceRequest) -> None:
        """Let a request wait for its stage."""
        level, key = self._levels[request.priority], _key(request)
        waiting = level.get(key)
        if waiting is None:
            waiting = level[key] = self._spare.pop() if self._spare else StageQueue()
        waiting.push(request)

    def take(self, limit: int, now_s: float) -> list[InferenceRequest]:
        """Remove and return the next batch of at most `limit` requests; one must be waiting."""
        index = next(at for at, level in enumerate(self._levels) if level)
        if self._audit_is_due(now_s):
            index = AUDIT
        self._since_audit = 0 if index == AUDIT else self._since_audit + 1
        key = self._deadline_batch(index, now_s)
        self._went_by_deadline[index] = by_deadline = key is not None
        if key is None:
            key = self._next_batch(self._levels[index], now_s)
        batch: list[InferenceRequest] = []
        for level in self._levels[index:]:
            if (waiting := level.get(key)) is not None:
                batch += waiting.take(limit - len(batch), by_deadline=by_deadline)
                self._drop_if_empty(level, key)
        return batch

    def remove(self, requests: Iterable[InferenceRequest]) -> list[InferenceRequest]:
        """Remove requests that wait; return those of them that did."""
        found = []
        for request in requests:
            level, key = self._levels[request.priority], _key(request)
            waiting = level.get(key)
            if waiting is not None and request in waiting:
                waiting.remove(request)
                found.append(request)
                self._drop_if_empty(level, key)
        return found

    @property
    def users_wait(self) -> bool:
        """Whether any request but audits waits."""
        return any(self._levels[:AUDIT])

    @property
    def depth(self) -> int:
        """Number of requests that wait, audits left out."""
        return sum([len(waiting) for level in self._levels[:AUDIT] for waiting in level.values()])

    def depths(self, num_stages: int) -> list[int]:
        """Count the requests waiting for each stage, audits left out, (K,)."""
        counts = [0] * num_stages
        for level in self._levels[:AUDIT]:
            for key, waiting in level.items():
                counts[key[0]] += len(waiting)
        return counts

    def oldest_s(self) -> float | None:
        """Return when the request that waits longest became ready, audits left out."""
        heads = [q.first.ready_s for level in self._levels[:AUDIT] for q in level.values()]
        return min(heads, default=None)

    def _audit_is_due(self, now_s: float) -> bool:
        """Whether an audit has waited for so long that it goes before users' requests."""
        audits = self._levels[AUDIT]
        if not audits or self._since_audit < AUDIT_EVERY:
            return False
        oldest_s = min([waiting.first.ready_s for waiting in audits.values()])
        return now_s - oldest_s > AUDIT_PATIENCE_S

    def _drop_if_empty(self, level: dict[Key, StageQueue], key: Key) -> None:
        if not level[key]:
            spare = level.pop(key)
            if len(self._spare) < SPARE_QUEUES:
                self._spare.append(spare)

    def _next_batch(self, level: dict[Key, StageQueue], now_s: float) -> Key:
        if len(level) == 1:
            return next(iter(level))
        keys = list(level)
        queued = [
            QueuedBatch(key[0], len(level[key]), level[key].first.arrived_s * 1e3) for key in keys
        ]
        return keys[choose_batch(queued, now_s * 1e3, self.priority)]

    def _deadline_batch(self, index: int, now_s: float) -> Key | None:
        """Return the queue whose first deadline is near, if deadlines may go first."""
        level = self._levels[index]
        until_s = now_s + DEADLINE_HORIZON_PASSES * self.priority.pass_ms / 1e3
        near = [
            (key[0] > 0, waiting.deadline_s, key)
            for key, waiting in level.items()
            if waiting.deadline_s is not None and waiting.deadline_s <= until_s
        ]
        if not near or (self._went_by_deadline[index] and self._starving(level, now_s)):
            return None
        return min(near, key=lambda each: each[:2])[2]

    def _starving(self, level: dict[Key, StageQueue], now_s: float) -> bool:
        """Whether a request has been in the engine for longer than it may be overtaken."""
        arrived_s = min([waiting.first.arrived_s for waiting in level.values()])
        return (now_s - arrived_s) * 1e3 > self.priority.max_overtake_ms


class WorkQueue:
    """The stage queues, shared by threads, and the workers that wait for a batch.

    A worker that finds nothing to do sleeps, and is woken for a batch that no other worker will
    take: waking a thread on another core costs more than most of what the engine does for a row.

    Args:
        priority: Priorities of batches; its `max_batch` is the most requests of one.
        clock: Seconds, monotonic.
        on_put: Called whenever requests wait.
    """

    def __init__(
        self,
        priority: BatchPriority,
        clock: Callable[[], float],
        on_put: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._on_put = on_put
        self._lock = threading.Lock()  # guards the next three
        self._queues = StageQueues(priority)
        self._idle_workers = 0
        self._closed = False
        self._wakeups = queue.SimpleQueue[None]()  # an entry wakes one idle worker

    def set_priority(self, priority: BatchPriority) -> None:
        """Replace the priorities and the batch limit from the next batch on."""
        with self._lock:
            self._queues.priority = priority

    def put(self, requests: Sequence[InferenceRequest], claimed: int = 0) -> None:
        """Let requests wait for their stage.

        Args:
            requests: They all wait for the same stage.
            claimed: Batches the calling worker will pick up itself; no idle worker is woken for
                them.
        """
        now = self._clock()
        with self._lock:
            for request in requests:
                request.ready_s = now
                self._queues.push(request)
            batches = -(-len(requests) // self._queues.priority.max_batch)
            woken = min(max(batches - claimed, 0), self._idle_workers)
            self._idle_workers -= woken
        for _ in range(woken):
            self._wakeups.put(None)
        self._on_put()

    def get(self) -> list[InferenceRequest]:
        """Wait for a batch; empty once the queue is closed and holds nothing."""
        while True:
            with self._lock:
                if self._queues or self._closed:
                    return self._next_batch()
                self._idle_workers += 1
            self._wakeups.get()

    def take(self) -> list[InferenceRequest]:
        """Return the next batch; empty if nothing waits."""
        with self._lock:
            return self._next_batch()

    def _next_batch(self) -> list[InferenceRequest]:
        if not self._queues:
            return []
        now = self._clock()
        batch = self._queues.take(self._queues.priority.max_batch, now)
        for request in batch:
            request.queue_ms += (now - request.ready_s) * 1e3
        return batch

    def remove(self, requests: Sequence[InferenceRequest]) -> int:
        """Remove requests that wait; return how many of them did."""
        with self._lock:
            return len(self._queues.remove(requests))

    def close(self, workers: int) -> None:
        """Let this many workers end once nothing waits."""
        with self._lock:
            self._closed = True
        for _ in range(workers):
            self._wakeups.put(None)

    def idle(self) -> bool:
        """Whether no user's request waits for a worker."""
        with self._lock:
            return not self._queues.users_wait

    def depth(self) -> int:
        """Count the requests that wait, audits left out."""
        with self._lock:
            return self._queues.depth

    def depths(self, num_stages: int) -> list[int]:
        """Count the requests waiting for each stage, audits left out, (K,)."""
        with self._lock:
            return self._queues.depths(num_stages)

    def oldest_wait_s(self) -> float:
        """Return the longest time that a user's request has waited for its stage; 0 if none."""
        with self._lock:
            since = self._queues.oldest_s()
        return 0.0 if since is None else max(self._clock() - since, 0.0)


def _key(request: InferenceRequest) -> Key:
    return request.stage, request.shape, request.run_to_end, request.policy


def _deadline_s(request: InferenceRequest) -> float:
    assert request.deadline_s is not None, "only requests with deadlines are sorted by deadline"
    return request.deadline_s
