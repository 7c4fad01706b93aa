"""The interface of an exit policy, its entry in the table of policies, and replay of recordings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

REPLAY_ROWS = 4096  # per chunk: keeps the histories of many classes small


class ExitScores(NamedTuple):
    """The scores of A rows at one exit.

    Attributes:
        scores: Exit scores, (A,).
        history: The rows' history with this exit added to it, (A, H).
        continuation_values: The expected value of running on, in the policy's own terms, which
            only `decide` reads, (A, G). G = 0 where the score alone decides.
    """

    scores: Array
    history: Array
    continuation_values: Array


class ExitDecision(NamedTuple):
    """The decision about A rows at one exit.

    Attributes:
        scores: Exit scores, (A,).
        history: The rows' history with this exit added to it, (A, H).
        leave: Whether each row leaves here, (A,).
        thresholds: The threshold that each score was compared with, (A,) or (1,); +inf: never
            leave.
    """

    scores: Array
    history: Array
    leave: NDArray[np.bool_]
    thresholds: Array


class ExitPolicy(Protocol):
    """A score and a decision rule, immutable once fitted, in numpy only.

    The history is the policy's own memory of the earlier exits of a row: H numbers per row, more
    from the first exit on if rows have several pixels. The caller keeps it, does not read it, and
    passes it back with the same row at the next exit. Rows never influence each other.
    """

    @property
    def kind(self) -> str:
        """The policy's name in bundles and responses."""

    @property
    def num_exits(self) -> int:
        """K, the number of exits."""

    @property
    def never_exit_parameter(self) -> float:
        """The parameter at which every row runs to the last exit."""

    def start(self, rows: int) -> Array:
        """Return the history (rows, H) of rows that have not reached any exit yet."""

    def score(self, exit: int, log_probs: NDArray[np.floating], history: Array) -> ExitScores:
        """Score rows at an exit.

        Args:
            exit: k, 0-based.
            log_probs: Finite log-probabilities at this exit, (A, C); for a segmentation
                (A, P, C), where a row is the mean of its P pixels.
            history: The result of `start` or of the previous exit's `score`, for these rows,
                (A, H).
        """

    def decide(self, exit: int, scored: ExitScores, parameters: Array) -> ExitDecision:
        """Decide which rows leave; at the last exit all do.

        Args:
            exit: k, 0-based.
            scored: From `score`, for A rows.
            parameters: Each row's own value of the policy's scalar, (A,), or one for all, (1,).
        """

    def step(
        self, exit: int, log_probs: NDArray[np.floating], history: Array, parameters: Array
    ) -> ExitDecision:
        """Score rows and decide which leave, in one call; arguments as in `score` and `decide`."""

    def needs(self, exit: int, parameter: float) -> bool:
        """Whether rows under a parameter need this exit's head to be computed.

        They do if the exit can fire, or if an exit that can fire later reads the history that this
        one writes. The last exit is always needed.
        """

    def thresholds(self, parameter: float) -> Array | None:
        """Return the thresholds (K,) that all rows share at one parameter; None if there are none.

        +inf where an exit never fires, -inf at the last.
        """


class CalibrationSet(NamedTuple):
    """The recorded predictions that a policy is fitted to.

    Attributes:
        log_probs: Calibration log-probabilities, (K, N, C); for a segmentation (K, N, P, C).
        labels: (N,); for a segmentation (N, P).
        costs_ms: Latency from the start until each exit, rising, (K,).
        weights: How many rows each row stands for, with a mean of 1, (N,); None: each for itself.
    """

    log_probs: NDArray[np.floating]
    labels: NDArray[np.int64]
    costs_ms: Array
    weights: Array | None = None

    def rows(self, chosen: NDArray[np.bool_]) -> "CalibrationSet":
        """Return the rows that a mask (N,) selects."""
        weights = None if self.weights is None else self.weights[chosen]
        return CalibrationSet(
            self.log_probs[:, chosen], self.labels[chosen], self.costs_ms, weights
        )


P = TypeVar("P")  # the class of the policy


@dataclass(frozen=True)
class PolicyKind(Generic[P]):
    """One entry of the table of policies: all that the other packages know about this kind.

    Attributes:
        name: The kind, as in `scheduler.json`, in responses and after `--policy`.
        summary: When a row leaves, in a few words.
        colour: Its colour in plots, `#rrggbb`, one of the eight that colour-blind readers can tell
            apart (Okabe and Ito 2008).
        fit: Fits the policy to a calibration set; the number is the seed of all randomness.
        parameters: Lists values of the fitted policy's parameter from "all rows leave at the first
            exit" to "all rows run to the last", in the order of rising cost, (G,).
        arrays: Returns the numbers that `scheduler.npz` stores for a policy, by name.
        load: Rebuilds the policy from those numbers and K.
        parameter_is_budget: Whether the parameter is a budget in milliseconds, which means the same
            to every fit. Otherwise cross-fitting matches parameters by the cost they lead to.
    """

    name: str
    summary: str
    colour: str
    fit: Callable[[CalibrationSet, int], P]
    parameters: Callable[[P, CalibrationSet], Array]
    arrays: Callable[[P], dict[str, Array]]
    load: Callable[[Mapping[str, Array], int], P]
    parameter_is_budget: bool = False


def imported_on_call(module: str, name: str) -> Callable[..., Any]:
    """Return a function that imports its implementation when it is first called.

    The server loads the table of policies but must not load the code that fits them.
    """

    def call(*args: Any) -> Any:
        return getattr(import_module(module), name)(*args)

    return call


def replay(policy: ExitPolicy, log_probs: NDArray[np.floating]) -> list[ExitScores]:
    """Score recorded predictions, (K, N, C) or (K, N, P, C), at every exit, as serving does.

    Returns:
        One entry per exit, K in all, with the scores and continuation values of all N rows, but
        without histories.
    """
    chunks = []
    for start in range(0, log_probs.shape[1], REPLAY_ROWS):
        rows = log_probs[:, start : start + REPLAY_ROWS]
        history, exits = policy.start(rows.shape[1]), []
        for exit, predictions in enumerate(rows):
            scored = policy.score(exit, predictions, history)
            history = scored.history
            exits.append(scored)
        chunks.append(exits)
    return [
        ExitScores(
            np.concatenate([part.scores for part in parts]),
            np.empty((log_probs.shape[1], 0)),
            np.concatenate([part.continuation_values for part in parts]),
        )
        for parts in zip(*chunks, strict=True)
    ]


def exits_taken(
    policy: ExitPolicy, replayed: Sequence[ExitScores], parameter: float
) -> NDArray[np.intp]:
    """Return the exit (N,) that each replayed row takes at one parameter: the first that fires."""
    value = np.array([parameter])
    leave = [policy.decide(exit, scored, value).leave for exit, scored in enumerate(replayed)]
    exits: NDArray[np.intp] = np.stack(leave).argmax(0)
    return exits


def score_all(policy: ExitPolicy, log_probs: NDArray[np.floating]) -> Array:
    """Return the scores (N, K) of recorded predictions, (K, N, C) or (K, N, P, C)."""
    return np.stack([scored.scores for scored in replay(policy, log_probs)], 1)
