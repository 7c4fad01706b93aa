"""Rows that wait for the same stage and may share a batch."""

from bisect import insort
from collections import OrderedDict

from server.engine.request import InferenceRequest


class StageQueue:
    """Rows in the order in which they came, and those with deadlines by when these pass."""

    def __init__(self) -> None:
        self._rows = OrderedDict[InferenceRequest, None]()  # any can be taken out at once
        self._due: list[InferenceRequest] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, row: InferenceRequest) -> bool:
        return row in self._rows

    @property
    def first(self) -> InferenceRequest:
        """The one that came first; there must be one."""
        return next(iter(self._rows))

    @property
    def deadline_s(self) -> float | None:
        """The first to pass; None where no row has any."""
        return self._due[0].deadline_s if self._due else None

    def push(self, row: InferenceRequest) -> None:
        """Let a row wait."""
        self._rows[row] = None
        if row.deadline_s is not None:
            insort(self._due, row, key=_deadline_s)

    def remove(self, row: InferenceRequest) -> None:
        """Take a row out that waits here."""
        del self._rows[row]
        if row.deadline_s is not None:
            self._due.remove(row)

    def take(self, most: int, *, by_deadline: bool) -> list[InferenceRequest]:
        """The first rows, up to so many; or those whose deadlines pass first before them."""
        taken = self._due[:most] if by_deadline else []
        for row in taken:
            del self._rows[row]
        del self._due[: len(taken)]
        while self._rows and len(taken) < most:
            row, _ = self._rows.popitem(last=False)
            taken.append(row)
            if row.deadline_s is not None:
                self._due.remove(row)
        return taken


def _deadline_s(row: InferenceRequest) -> float:
    assert row.deadline_s is not None, "only rows with deadlines are sorted by them"
    return row.deadline_s
