"""The ready lists: rows that wait for a stage, and which of them go next."""

from collections import OrderedDict
from collections.abc import Iterable

from profiling.disciplines import Urgency
from server.in_force import InForce
from server.row import AUDIT, Row, Shape

Key = tuple[int, Shape, bool, InForce | None]  # stage, shape of the input, blind, policy
List = OrderedDict[Row, None]  # the oldest first; any row can be taken out at once


class ReadyLists:
    """Per stage the rows that wait for it. Not thread-safe.

    Rows of a better priority go before all others. Among them the batch goes next that is most
    urgent (`profiling.disciplines`), unless it would overtake a row that came earlier by more than
    its patience, so that none starve. With batches of one row it is the row that came first.
    Free places of a batch go to rows of lower priority that wait for the same stage. Rows of one
    batch are of one shape, under one policy, and all of them blind or none.
    Audits are below the last priority; they are under no policy, and so share no batch with others.

    Args:
        urgency: What batches are worth; may be replaced at any time.
    """

    def __init__(self, urgency: Urgency) -> None:
        self.urgency = urgency
        self._levels: list[dict[Key, List]] = [{} for _ in range(AUDIT + 1)]

    def __bool__(self) -> bool:
        return any(self._levels)

    def push(self, row: Row) -> None:
        """Let a row wait for its stage."""
        self._levels[row.priority].setdefault(_key(row), OrderedDict())[row] = None

    def take(self, max_batch: int, now_s: float) -> list[Row]:
        """The next batch; some row must be waiting."""
        priority = next(p for p, level in enumerate(self._levels) if level)
        key = self._next(self._levels[priority], now_s)
        batch: list[Row] = []
        for lists in self._levels[priority:]:
            if rows := lists.get(key):
                places = min(max_batch - len(batch), len(rows))
                batch += [rows.popitem(last=False)[0] for _ in range(places)]
                if not rows:
                    del lists[key]
        return batch

    def remove(self, rows: Iterable[Row]) -> list[Row]:
        """Take rows out that wait; those of them that did."""
        found = []
        for row in rows:
            lists, key = self._levels[row.priority], _key(row)
            waiting = lists.get(key)
            if waiting is not None and row in waiting:
                del waiting[row]
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
        heads = [_first(rows).ready_s for lists in users for rows in lists.values()]
        return min(heads, default=None)

    def _next(self, lists: dict[Key, List], now_s: float) -> Key:
        """The list whose turn it is, among those of one priority."""
        if len(lists) == 1:
            return next(iter(lists))

        def urgency(key: Key) -> tuple[float, int]:
            stage, rows = key[0], lists[key]
            age_ms = (now_s - _first(rows).arrived_s) * 1e3
            return self.urgency.of(stage, len(rows), age_ms), stage

        best = max(lists, key=urgency)
        first = min(lists, key=lambda key: _first(lists[key]).arrived_s)
        ahead_s = _first(lists[best]).arrived_s - _first(lists[first]).arrived_s
        return first if ahead_s * 1e3 > self.urgency.patience_ms else best


def _first(rows: List) -> Row:
    return next(iter(rows))


def _key(row: Row) -> Key:
    return row.stage, row.shape, row.blind, row.under
