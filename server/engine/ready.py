"""The ready lists: rows that wait for a stage, and which of them go next."""

from collections.abc import Iterable

from profiling.simulation.disciplines import BatchPriority
from server.engine.active_policy import ActivePolicy
from server.engine.ready_list import StageQueue
from server.engine.request import AUDIT, InferenceRequest, Shape

Key = tuple[int, Shape, bool, ActivePolicy | None]  # stage, shape of the input, blind, policy
DEADLINE_HORIZON_PASSES = 1.5  # full batches through the whole network


class StageQueues:
    """Per stage the rows that wait for it. Not thread-safe.

    Rows of a better priority go before all others. Among them the batch goes next that is most
    urgent (`profiling.simulation.disciplines`), unless it would overtake a row that came earlier
    by more than
    its patience, so that none starve. With batches of one row it is the row that came first.
    Free places of a batch go to rows of lower priority that wait for the same stage. Rows of one
    batch are of one shape, under one policy, and all of them blind or none.
    Audits are below the last priority; they are under no policy, and so share no batch with others.

    Rows whose deadline is near go before the others of their priority, those first that have no
    answer yet, then as their deadlines pass. As long as any row has waited beyond its patience,
    every other batch goes by the rule above nevertheless.

    Args:
        urgency: What batches are worth; may be replaced at any time.
    """

    def __init__(self, urgency: BatchPriority) -> None:
        self.urgency = urgency
        self._levels: list[dict[Key, StageQueue]] = [{} for _ in range(AUDIT + 1)]
        self._pressed = [False] * (AUDIT + 1)  # whether the batch before went by deadlines

    def __bool__(self) -> bool:
        return any(self._levels)

    def push(self, row: InferenceRequest) -> None:
        """Let a row wait for its stage."""
        self._levels[row.priority].setdefault(_key(row), StageQueue()).push(row)

    def take(self, max_batch: int, now_s: float) -> list[InferenceRequest]:
        """The next batch; some row must be waiting."""
        priority = next(p for p, level in enumerate(self._levels) if level)
        pressing = self._pressing(priority, now_s)
        self._pressed[priority] = pressing is not None
        key = pressing or self._next(self._levels[priority], now_s)
        batch: list[InferenceRequest] = []
        for lists in self._levels[priority:]:
            if rows := lists.get(key):
                batch += rows.take(max_batch - len(batch), by_deadline=pressing is not None)
                if not rows:
                    del lists[key]
        return batch

    def remove(self, rows: Iterable[InferenceRequest]) -> list[InferenceRequest]:
        """Take rows out that wait; those of them that did."""
        found = []
        for row in rows:
            lists, key = self._levels[row.priority], _key(row)
            waiting = lists.get(key)
            if waiting is not None and row in waiting:
                waiting.remove(row)
                found.append(row)
                if not waiting:
                    del lists[key]
        return found

    @property
    def users_wait(self) -> bool:
        """Whether any row but audits waits."""
        return any(self._levels[:AUDIT])

    def depths(self, num_stages: int) -> list[int]:
        """Rows waiting for each stage, audits left out, (K,)."""
        counts = [0] * num_stages
        for lists in self._levels[:AUDIT]:
            for key, rows in lists.items():
                counts[key[0]] += len(rows)
        return counts

    def oldest_s(self) -> float | None:
        """When the row came that has waited longest, audits left out; None when none waits."""
        users = self._levels[:AUDIT]
        heads = [rows.first.ready_s for lists in users for rows in lists.values()]
        return min(heads, default=None)

    def _pressing(self, priority: int, now_s: float) -> Key | None:
        """The list whose first deadline is near, if these may go first."""
        lists = self._levels[priority]
        until_s = now_s + DEADLINE_HORIZON_PASSES * self.urgency.pass_ms / 1e3
        near = [
            (key[0] > 0, rows.deadline_s, key)
            for key, rows in lists.items()
            if rows.deadline_s is not None and rows.deadline_s <= until_s
        ]
        if not near or (self._pressed[priority] and self._impatient(lists, now_s)):
            return None
        return min(near, key=lambda each: each[:2])[2]

    def _impatient(self, lists: dict[Key, StageQueue], now_s: float) -> bool:
        """Whether a row has been on its way for longer than its patience."""
        came_s = min([rows.first.arrived_s for rows in lists.values()])
        return (now_s - came_s) * 1e3 > self.urgency.patience_ms

    def _next(self, lists: dict[Key, StageQueue], now_s: float) -> Key:
        """The list whose turn it is, among those of one priority."""
        if len(lists) == 1:
            return next(iter(lists))

        def urgency(key: Key) -> tuple[float, int]:
            stage, rows = key[0], lists[key]
            age_ms = (now_s - rows.first.arrived_s) * 1e3
            return self.urgency.priority(stage, len(rows), age_ms), stage

        best = max(lists, key=urgency)
        first = min(lists, key=lambda key: lists[key].first.arrived_s)
        ahead_s = lists[best].first.arrived_s - lists[first].first.arrived_s
        return first if ahead_s * 1e3 > self.urgency.patience_ms else best


def _key(row: InferenceRequest) -> Key:
    return row.stage, row.shape, row.run_to_end, row.policy
