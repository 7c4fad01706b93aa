"""Optimal stopping: leave once the prediction is worth at least the expected value of running on.

For a fixed network the most accurate rule at a mean cost is an optimal-stopping rule with a
Lagrange multiplier lambda, the price of a millisecond (backward induction, e.g. Chow, Robbins and
Siegmund 1971; the continuation value by regression as in Longstaff and Schwartz 2001):

    q_k = P(correct at k | s_k)
    V_k = max(q_k, C_k),  C_k = E[V_{k+1} | s_k] - lambda (c_{k+1} - c_k),  V_{K-1} = q_{K-1}
    leave at k  iff  q_k >= C_k

so that a hopeless row leaves early too.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import add, mul
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scheduler.confidence import SMALLEST_LOG, entropy_confidence, logistic
from scheduler.pixels import pixel_histories, pixels_of, row_histories, row_means
from scheduler.policy import ExitDecision, ExitScores, PolicyKind, imported_on_call

Array = NDArray[np.float64]

NUM_FEATURES = 6
FEW_CLASSES = 64
TINY = 1e-4  # keeps logits finite


@dataclass(frozen=True)
class StoppingPolicy:
    """The optimal-stopping rule at any price of a millisecond; the price is the parameter.

    q_k and E[V_{k+1}] (both in [0, 1]) are logistic in a few features of the row's predictions so
    far. There is one E[V_{k+1}] for each price of a grid; it is linear in between and constant
    beyond the ends. The score of a row is q_k, its threshold is C_k. Below price 0 running longer
    is rewarded, which spends budgets beyond the point where accuracy still gains.

    Attributes:
        prices: The grid, accuracy per ms, rising from 0, (G,).
        steps_ms: Cost of running on from each exit to the next, at fitting time, (K - 1,).
        weights: Per exit, the weights of [1, features] for the logits of q and of E[V] at each
            price, (F, 1 + G); at the last exit (F, 1).
        class_offsets: Per exit, added to the logits by predicted class, (C, 1 + G); at the last
            exit (C, 1).
    """

    kind: ClassVar[str] = "stopping"
    prices: Array
    steps_ms: Array
    weights: tuple[Array, ...]
    class_offsets: tuple[Array, ...]
    _prices: list[float] = field(init=False, repr=False, compare=False)
    _columns: list[list[list[float]]] = field(init=False, repr=False, compare=False)
    _offsets: list[list[list[float]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        width, steps = 1 + len(self.prices), len(self.weights) - 1
        expected = [(NUM_FEATURES, width)] * steps + [(NUM_FEATURES, 1)]
        offsets = [(len(self.class_offsets[0]), columns) for _, columns in expected]
        if (
            [each.shape for each in self.weights] != expected
            or [each.shape for each in self.class_offsets] != offsets
            or self.steps_ms.shape != (steps,)
        ):
            raise ValueError("the shapes of prices, steps, weights and class offsets disagree")
        object.__setattr__(self, "_prices", self.prices.tolist())
        object.__setattr__(self, "_columns", [each.T.tolist() for each in self.weights])
        object.__setattr__(self, "_offsets", [each.tolist() for each in self.class_offsets])

    @property
    def num_exits(self) -> int:
        """K, the number of exits."""
        return len(self.weights)

    @property
    def never_exit_parameter(self) -> float:
        """A price so far below 0 that the reward for one more step outweighs any prediction."""
        return float(-2 / self.steps_ms.min())

    @property
    def exit_at_first_parameter(self) -> float:
        """A price so high that leaving at the first exit is always best."""
        return float(2 / self.steps_ms[0])

    def start(self, rows: int) -> Array:
        """Return a history (rows, C) of zeros: the sum of the class probabilities so far."""
        return np.zeros((rows, len(self.class_offsets[0])))

    def score(self, exit: int, log_probs: NDArray[np.floating], history: Array) -> ExitScores:
        """Return the probability q that each row is right, and E[V] at each price of the grid."""
        inputs, classes, history = stopping_features(exit, log_probs, history)
        offsets = row_means(self.class_offsets[exit][classes], len(inputs))
        logits = inputs @ self.weights[exit] + offsets
        values = logistic(logits)
        return ExitScores(values[:, 0], history, values[:, 1:])

    def step(
        self, exit: int, log_probs: NDArray[np.floating], history: Array, parameters: Array
    ) -> ExitDecision:
        """Score and decide; plain arithmetic for one row of few classes takes a third of the time.

        This is the hot path of serving: at such sizes numpy's overhead per call dominates.
        """
        if (
            log_probs.size > FEW_CLASSES
            or len(log_probs) > 1
            or log_probs.ndim > 2
            or exit == self.num_exits - 1
        ):
            return self.decide(exit, self.score(exit, log_probs, history), parameters)
        features, predicted_class, new_history = _features_of_one_row(
            exit, log_probs.ravel().tolist(), history[0].tolist()
        )
        columns, offsets = self._columns[exit], self._offsets[exit][predicted_class]

        def value(column: int) -> float:
            return _logistic(sum(map(mul, features, columns[column])) + offsets[column])

        chance, price = value(0), float(parameters[0])
        place = min(max(bisect_right(self._prices, price), 1), len(self._prices) - 1)
        low, high = self._prices[place - 1 : place + 1]
        weight = min(max((price - low) / (high - low), 0.0), 1.0)
        ahead = (1 - weight) * value(place) + weight * value(place + 1)
        continuation = ahead - price * float(self.steps_ms[exit])
        leave = np.array([chance >= continuation])
        return ExitDecision(
            np.array([chance]), np.array([new_history]), leave, np.array([continuation])
        )

    def decide(self, exit: int, scored: ExitScores, parameters: Array) -> ExitDecision:
        """Leave where q reaches the continuation value at the row's own price."""
        scores, history, values = scored
        if exit == self.num_exits - 1:
            everyone = np.ones(len(scores), np.bool_)
            return ExitDecision(scores, history, everyone, np.full(len(scores), -np.inf))
        last = len(self.prices) - 1
        place = np.interp(parameters, self.prices, np.arange(last + 1))  # clipped to the grid
        below = np.minimum(place.astype(np.intp), last - 1)
        weight, rows = place - below, np.arange(len(scores))
        ahead = (1 - weight) * values[rows, below] + weight * values[rows, below + 1]
        continuation = ahead - parameters * self.steps_ms[exit]
        return ExitDecision(scores, history, scores >= continuation, continuation)

    def needs(self, exit: int, parameter: float) -> bool:
        """False if running on is rewarded by more than any prediction is worth, here and later."""
        ahead = self.steps_ms[exit:]
        return not len(ahead) or bool(-parameter * ahead.min() <= 1)

    def thresholds(self, parameter: float) -> None:
        """Return None: every row has a threshold of its own."""


def _arrays(policy: StoppingPolicy) -> dict[str, Array]:
    return (
        {"prices": policy.prices, "steps_ms": policy.steps_ms}
        | {f"weights_{k}": weights for k, weights in enumerate(policy.weights)}
        | {f"class_offsets_{k}": offsets for k, offsets in enumerate(policy.class_offsets)}
    )


def _load(arrays: Mapping[str, Array], num_exits: int) -> StoppingPolicy:
    exits = range(num_exits)
    return StoppingPolicy(
        arrays["prices"],
        arrays["steps_ms"],
        tuple(arrays[f"weights_{k}"] for k in exits),
        tuple(arrays[f"class_offsets_{k}"] for k in exits),
    )


STOPPING = PolicyKind(
    "stopping",
    "the prediction is worth at least the expected value of running on, at a price per millisecond",
    "#0072b2",
    fit=imported_on_call("scheduler.fitting.stopping", "fit"),
    parameters=imported_on_call("scheduler.fitting.stopping", "parameters"),
    arrays=_arrays,
    load=_load,
)


def stopping_features(
    exit: int, log_probs: NDArray[np.floating], history: Array
) -> tuple[Array, NDArray[np.intp], Array]:
    """Summarise the predictions of rows up to an exit in a few numbers.

    Args:
        exit: k.
        log_probs: (A, C), or (A, P, C).
        history: Sum of the class probabilities of the exits before, (A, C) or (A, P * C).

    Returns:
        Features (A, 6): 1; the logit of the max probability; the max probability; the entropy
        confidence; the margin to the second class; the logit of the mean probability that earlier
        exits gave this class (0 at the first). Then the predicted class of every pixel (A * P,),
        and the new history.
    """
    num_rows, pixels = len(log_probs), pixels_of(log_probs)
    history = pixel_histories(history, pixels, pixels.shape[1])
    probs = np.exp(pixels, dtype=np.float64)
    classes, rows = pixels.argmax(1), np.arange(len(pixels))
    best, second = probs[rows, classes], np.partition(probs, -2, axis=1)[:, -2]
    inputs = np.zeros((len(rows), NUM_FEATURES))
    inputs[:, 0] = 1
    inputs[:, 1] = _logit(best)
    inputs[:, 2] = best
    inputs[:, 3] = entropy_confidence(pixels, probs)
    inputs[:, 4] = best - second
    if exit > 0:
        inputs[:, 5] = _logit(history[rows, classes] / exit)
    return row_means(inputs, num_rows), classes, row_histories(history + probs, num_rows)


def _features_of_one_row(
    exit: int, log_probs: list[float], history: list[float]
) -> tuple[tuple[float, ...], int, list[float]]:
    """Compute `stopping_features` of one row of one pixel, without arrays: a third of the time.

    Args:
        exit: k, 0-based.
        log_probs: Log-probabilities of the C classes.
        history: Sum of the class probabilities of earlier exits, one number a class.

    Returns:
        The six features, the predicted class and the new history.
    """
    probs = list(map(math.exp, log_probs))
    second, best = sorted(probs)[-2:]
    predicted_class = log_probs.index(max(log_probs))
    logs = [max(log, SMALLEST_LOG) for log in log_probs]
    confidence = 1 + sum(map(mul, probs, logs)) / math.log(len(probs))
    earlier = _logit_of(history[predicted_class] / exit) if exit > 0 else 0.0
    features = (1.0, _logit_of(best), best, confidence, best - second, earlier)
    return features, predicted_class, list(map(add, history, probs))


def _logit_of(prob: float) -> float:
    return math.log((prob + TINY) / (1 + TINY - prob))


def _logistic(logit: float) -> float:
    return 0.5 + 0.5 * math.tanh(0.5 * logit)


def _logit(probs: Array) -> Array:
    logits: Array = np.log((probs + TINY) / (1 + TINY - probs))
    return logits
