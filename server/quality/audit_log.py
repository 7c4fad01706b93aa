"""Log of the audit: answers of all exits for a share of the traffic, and their agreement."""

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.combiner import probabilities

MOST_ROWS = 2000
MOST_BYTES = 32 * 2**20


class AuditedRow(NamedTuple):
    """A sample with the answers of every exit.

    Attributes:
        request_key: 64-bit hash of its request's id.
        exit: Exit of its prediction.
        parameter: Parameter of the policy that it exited under.
        log_probs: What each exit answers, combined, (K, C); for a segmentation (K, P, C).
        heads: The own outputs of the heads, which a scheduler can be fitted to; the same array
            where nothing is combined.
    """

    request_key: int
    exit: int
    parameter: float
    log_probs: NDArray[np.float16]
    heads: NDArray[np.float16]

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.log_probs.nbytes + (self.heads is not self.log_probs) * self.heads.nbytes


class AgreementCount(NamedTuple):
    """Number of samples, and of those whose prediction agrees with the last exit."""

    samples: int
    agreeing: int

    @property
    def ratio(self) -> float | None:
        """Share that agrees; None without samples."""
        return self.agreeing / self.samples if self.samples else None


class AuditLog:
    """The newest audited rows of one model under one policy, oldest first.

    Args:
        num_exits: K.
        most_rows: Most rows kept; fewer if they would exceed `most_bytes`.
        most_bytes: Most bytes of log-probabilities.
    """

    def __init__(
        self,
        num_exits: int,
        most_rows: int = MOST_ROWS,
        most_bytes: int = MOST_BYTES,
        *,
        label_sets: bool = False,
    ) -> None:
        self.num_exits = num_exits
        self._label_sets = label_sets
        self._most_rows, self._most_bytes = most_rows, most_bytes
        self.clear()

    def clear(self) -> None:
        """Remove all rows: another policy exits elsewhere."""
        self.rows: deque[AuditedRow] = deque()
        self.added = 0
        self._labels: dict[int, int | None] = {}
        self._agrees: deque[bool] = deque()
        self._bytes = 0
        self._samples, self._agreeing = [0] * self.num_exits, [0] * self.num_exits

    def add(
        self,
        request_key: int,
        exit: int,
        parameter: float,
        log_probs: NDArray[np.floating],
        heads: NDArray[np.floating] | None = None,
    ) -> None:
        """Add a row and drop the oldest ones beyond the limits.

        Predictions are compared before rounding: at half precision classes may tie.

        Args:
            request_key: 64-bit hash of its request's id.
            exit: Exit of its prediction.
            parameter: Parameter of the policy that it exited under.
            log_probs: What each exit answers, (K, C) or (K, P, C).
            heads: The own outputs of the heads; None: nothing is combined.
        """
        answers = log_probs.astype(np.float16)
        own = answers if heads is None else heads.astype(np.float16)
        row = AuditedRow(request_key, exit, parameter, answers, own)
        agrees = self._answer(log_probs[exit]) == self._answer(log_probs[-1])
        self.rows.append(row)
        self.added += 1
        self._labels[request_key] = None
        self._agrees.append(agrees)
        self._count(row, agrees, 1)
        while len(self.rows) > self._most_rows or (
            self._bytes > self._most_bytes and len(self.rows) > 1
        ):
            oldest = self.rows.popleft()
            self._labels.pop(oldest.request_key, None)
            self._count(oldest, self._agrees.popleft(), -1)

    def _answer(self, log_probs: NDArray[np.floating]) -> list[int]:
        """Return the class that an exit answers, or of label sets which labels it sets."""
        if self._label_sets:
            marks: list[int] = log_probs.argmax(-1).tolist()
            return marks
        return [int(probabilities(log_probs).argmax())]

    def label(self, request_key: int, class_id: int) -> None:
        """Store the true label of a sample, if the log has its row."""
        if request_key in self._labels:
            self._labels[request_key] = class_id

    def label_of(self, request_key: int) -> int | None:
        """The true label stored for a sample, or None."""
        return self._labels.get(request_key)

    def at(self, exit: int) -> AgreementCount:
        """Agreement of the rows that left at an exit."""
        return AgreementCount(self._samples[exit], self._agreeing[exit])

    @property
    def early(self) -> AgreementCount:
        """Agreement of the rows that left before the last exit."""
        return AgreementCount(sum(self._samples[:-1]), sum(self._agreeing[:-1]))

    def _count(self, row: AuditedRow, agrees: bool, step: int) -> None:
        self._samples[row.exit] += step
        self._agreeing[row.exit] += step * agrees
        self._bytes += step * row.nbytes
