"""What every exit policy is: a score for each row at each exit, and a decision."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

REPLAY_ROWS = 4096  # at a time, so that histories of many classes stay small


class Scored(NamedTuple):
    """What one exit shows about its rows.

    Attributes:
        scores: Exit scores, (A,).
        history: The rows' history with this exit added to it, (A, H).
        continuation_values: What going on promises, in the policy's own terms, for `decide` alone,
            (A, G); G = 0 where the score is all that counts.
    """

    scores: NDArray[np.float64]
    history: NDArray[np.float64]
    continuation_values: NDArray[np.float64]


class Decision(NamedTuple):
    """Whether each row leaves, (A,), and the threshold it met, (A,) or (1,); +inf: never."""

    leave: NDArray[np.bool_]
    thresholds: NDArray[np.float64]


class Step(NamedTuple):
    """What scoring and deciding come to, of A rows: both above, less the continuation_values."""

    scores: NDArray[np.float64]
    history: NDArray[np.float64]
    leave: NDArray[np.bool_]
    thresholds: NDArray[np.float64]

    @classmethod
    def of(cls, scored: Scored, decision: Decision) -> "Step":
        """Put the two together."""
        return cls(scored.scores, scored.history, *decision)


class ExitPolicy(Protocol):
    """A score and a decision rule, immutable once fitted, in numpy only.

    The history is the policy's own memory of what a row has shown at earlier exits: H numbers a
    row, more from the first exit on where rows have several pixels, which the caller carries along
    unread and hands back with the same row at the next exit. Rows never influence each other.
    """

    @property
    def kind(self) -> str:
        """The policy's name in bundles and answers."""

    @property
    def num_exits(self) -> int:
        """K."""

    @property
    def never_exit_parameter(self) -> float:
        """The parameter at which every row runs to the last exit."""

    def start(self, rows: int) -> NDArray[np.float64]:
        """The history (rows, H) of rows that have shown nothing yet."""

    def score(
        self, exit: int, log_probs: NDArray[np.floating], history: NDArray[np.float64]
    ) -> Scored:
        """Score rows at an exit.

        Args:
            exit: k, 0-based.
            log_probs: Finite log-probabilities at this exit, (A, C); of a segmentation
                (A, P, C), P pixels a row, which a row is the mean of.
            history: What `start` or the previous exit's `score` returned for these rows, (A, H).
        """

    def decide(self, exit: int, scored: Scored, parameters: NDArray[np.float64]) -> Decision:
        """Decide which rows leave; at the last exit all do.

        Args:
            exit: k, 0-based.
            scored: From `score`, of A rows.
            parameters: Each row's own value of the policy's scalar, (A,), or one for all, (1,).
        """

    def step(
        self,
        exit: int,
        log_probs: NDArray[np.floating],
        history: NDArray[np.float64],
        parameters: NDArray[np.float64],
    ) -> Step:
        """Score rows and decide which leave, in one go; arguments as of `score` and `decide`."""

    def needs(self, exit: int, parameter: float) -> bool:
        """Whether rows under a parameter need this exit's head to be computed.

        They do where it may fire, or where an exit that may fire later reads the history that it
        leaves. The last exit is always needed.
        """

    def thresholds(self, parameter: float) -> NDArray[np.float64] | None:
        """The thresholds (K,) at one value, the same for all rows; None where there are none.

        +inf where an exit never fires, -inf at the last.
        """


def replay(policy: ExitPolicy, log_probs: NDArray[np.floating]) -> list[Scored]:
    """Score recorded predictions, (K, N, C) or (K, N, P, C), at every exit, as serving does.

    Returns:
        Per exit, K of them, the scores and continuation_values of all N rows; histories are left
        out.
    """
    chunks = []
    for start in range(0, log_probs.shape[1], REPLAY_ROWS):
        rows = log_probs[:, start : start + REPLAY_ROWS]
        history, exits = policy.start(rows.shape[1]), []
        for exit, shown in enumerate(rows):
            scored = policy.score(exit, shown, history)
            history = scored.history
            exits.append(scored)
        chunks.append(exits)
    return [
        Scored(
            np.concatenate([part.scores for part in parts]),
            np.empty((log_probs.shape[1], 0)),
            np.concatenate([part.continuation_values for part in parts]),
        )
        for parts in zip(*chunks, strict=True)
    ]


def exits_taken(
    policy: ExitPolicy, replayed: Sequence[Scored], parameter: float
) -> NDArray[np.intp]:
    """The exit (N,) each replayed row takes at one parameter value: the first that lets it go."""
    value = np.array([parameter])
    leave = [policy.decide(exit, scored, value).leave for exit, scored in enumerate(replayed)]
    exits: NDArray[np.intp] = np.stack(leave).argmax(0)
    return exits


def score_all(policy: ExitPolicy, log_probs: NDArray[np.floating]) -> NDArray[np.float64]:
    """The scores (N, K) of recorded predictions, (K, N, C) or (K, N, P, C)."""
    return np.stack([scored.scores for scored in replay(policy, log_probs)], 1)
