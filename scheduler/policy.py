"""What every exit policy is: a score for each row at each exit, and a decision."""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Scored(NamedTuple):
    """Exit scores (A,) and the history (A, H) with this exit added to it."""

    scores: NDArray[np.float64]
    history: NDArray[np.float64]


class Decision(NamedTuple):
    """Whether each row leaves, (A,), and the threshold it met, (A,); +inf: never fires."""

    leave: NDArray[np.bool_]
    thresholds: NDArray[np.float64]


class ExitPolicy(Protocol):
    """A score and a decision rule, immutable once fitted, in numpy only.

    The history is the policy's own memory of what a row has shown at earlier exits: H numbers a
    row, which the caller carries along unread and hands back with the same row at the next exit.
    Rows never influence each other.
    """

    @property
    def kind(self) -> str:
        """The policy's name in bundles and answers."""

    @property
    def num_exits(self) -> int:
        """K."""

    def start(self, rows: int) -> NDArray[np.float64]:
        """The history (rows, H) of rows that have shown nothing yet."""

    def score(
        self, exit: int, log_probs: NDArray[np.floating], history: NDArray[np.float64]
    ) -> Scored:
        """Score rows at an exit.

        Args:
            exit: k, 0-based.
            log_probs: Log-probabilities at this exit, (A, C).
            history: What `start` or the previous exit's `score` returned for these rows, (A, H).
        """

    def decide(
        self, exit: int, scores: NDArray[np.float64], parameters: NDArray[np.float64]
    ) -> Decision:
        """Decide which rows leave; at the last exit all do.

        Args:
            exit: k, 0-based.
            scores: From `score`, (A,).
            parameters: Each row's own value of the policy's scalar, (A,).
        """

    def thresholds(self, parameter: float) -> NDArray[np.float64]:
        """The thresholds (K,) at one value; +inf where an exit never fires, -inf at the last."""


def score_all(policy: ExitPolicy, log_probs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Score recorded predictions (K, N, C) at every exit, (N, K), by the calls of serving."""
    history = policy.start(log_probs.shape[1])
    columns = []
    for exit, rows in enumerate(log_probs):
        scores, history = policy.score(exit, rows, history)
        columns.append(scores)
    return np.stack(columns, 1)
