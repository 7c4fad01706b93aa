"""Combined answers: an exit answers from all heads so far, not from its own alone.

    log p'_k = log softmax(sum_{j <= k} w_j log p_j + b + A [log p_0 .. log p_k, p_0 .. p_k, x_k])

Powers w alone are a logarithmic opinion pool (Genest and Zidek 1986); b and A make it a stacked
generalisation (Wolpert 1992), where x_k, if there, holds the products of the log p_k of every two
classes. Policies, frontiers and answers all read the combined predictions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Array = NDArray[np.float64]

SMALLEST_LOG = -25.0  # of a probability that is read: below it, one head would overrule all others
SMALLEST_FACTOR = -8.0  # of a product: squares of surer logarithms would outweigh all else
CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Combiner:
    """How each exit's answer follows from the outputs of its own head and of those before it.

    The default answers with each head's own output, for any number of exits, and for segmentations.

    Attributes:
        weights: One entry per exit; none at all: each head's own output. The entry of exit k is
            None: its head's own output; (k + 1,): the powers w of the exits so far; or
            (1 + 2 (k + 1) C, C): the weights of [1, log p_0 .. log p_k, p_0 .. p_k], with w on the
            diagonals; or C (C + 1) / 2 rows more: the weights of the products too.
    """

    weights: tuple[Array | None, ...] = ()

    def __post_init__(self) -> None:
        for exit, weights in enumerate(self.weights):
            _check_weights(exit, weights)

    @property
    def empty(self) -> bool:
        """Whether every exit answers with its own head's output."""
        return all(each is None for each in self.weights)

    def reads(self, exit: int) -> bool:
        """Whether the combination of this exit or of a later one reads this exit's head."""
        return any(each is not None for each in self.weights[exit:])

    def needs(self, exit: int) -> bool:
        """Whether the combination of a later exit reads the output of this exit's head.

        Its head must then run even if no row can leave here.
        """
        return self.reads(exit + 1)

    def start(self, rows: int) -> Array:
        """Return the memory (rows, 0) of rows that have not reached any exit yet."""
        return np.empty((rows, 0))

    def remember(self, exit: int, log_probs: Floats, memory: Array) -> Array:
        """Return the memory of rows with the output of an exit's head added to it.

        Args:
            exit: k, 0-based.
            log_probs: Finite log-probabilities of this exit's head, (A, C). If no exit from here on
                combines anything, rows of pixels (A, P, C) pass too, and are not remembered.
            memory: The result of `start`, or of `remember` at the previous exit, for these rows,
                (A, k C).

        Returns:
            The memory (A, (k + 1) C); the one that came in where nothing reads it.

        Raises:
            ValueError: If the memory lacks an exit that this one or a later one reads.
        """
        if not self.reads(exit):
            return memory
        num_rows, num_classes = log_probs.shape
        if memory.shape != (num_rows, exit * num_classes):
            raise ValueError(
                f"the memory of {num_rows} rows at exit {exit} has the shape {memory.shape}, not "
                f"{(num_rows, exit * num_classes)}; run every head that `needs` names"
            )
        logs = np.maximum(log_probs, SMALLEST_LOG, dtype=np.float64)
        return np.concatenate([memory, logs], 1) if exit else logs

    def combine(self, exit: int, log_probs: Floats, memory: Array) -> Floats:
        """Return the log-probabilities that rows are answered with at an exit.

        Rows never influence each other.

        Args:
            exit: k, 0-based.
            log_probs: Log-probabilities of this exit's head, (A, C) or (A, P, C).
            memory: The result of `remember` at this exit, for these rows, (A, (k + 1) C).

        Returns:
            `log_probs` itself if this exit combines nothing; otherwise (A, C) in at least single
            precision, since half would round different classes to the same number.
        """
        weights = self.weights[exit] if self.weights else None
        if weights is None:
            return log_probs
        combined = log_softmax(_logits(weights, memory, log_probs.shape[1]))
        return combined.astype(_precision_of(log_probs), copy=False)

    def combine_all(self, log_probs: Floats) -> Floats:
        """Combine recorded predictions (K, N, C) as serving does, in at least single precision.

        Without any combination they are returned as they are, segmentations (K, N, P, C) too.
        """
        if self.empty:
            return log_probs
        combined = np.empty(log_probs.shape, _precision_of(log_probs))
        for first in range(0, log_probs.shape[1], CHUNK_ROWS):
            rows = log_probs[:, first : first + CHUNK_ROWS]
            memory = self.start(rows.shape[1])
            for exit, outputs in enumerate(rows):
                memory = self.remember(exit, outputs, memory)
                answers = self.combine(exit, outputs, memory)
                combined[exit, first : first + CHUNK_ROWS] = answers
        return combined

    def arrays(self) -> dict[str, Array]:
        """Return the numbers that `scheduler.npz` stores, by name."""
        named = {f"combiner_{exit}": weights for exit, weights in enumerate(self.weights)}
        return {name: weights for name, weights in named.items() if weights is not None}

    @staticmethod
    def load(arrays: Mapping[str, Array], num_exits: int) -> "Combiner":
        """Rebuild a combiner from those numbers and K; files without them combine nothing."""
        names = [f"combiner_{exit}" for exit in range(num_exits)]
        if not any(name in arrays for name in names):
            return Combiner()
        return Combiner(tuple(arrays[name] if name in arrays else None for name in names))


def _logits(weights: Array, seen: Array, num_classes: int) -> Array:
    """Return the logits (A, C) of the combination of the logs (A, (k + 1) C) of the exits."""
    if weights.ndim == 1:
        pooled: Array = weights @ seen.reshape(len(seen), len(weights), num_classes)
        return pooled
    with_products = len(weights) > 1 + 2 * seen.shape[1]
    logits: Array = stack_inputs(seen, num_classes, with_products=with_products) @ weights[1:]
    logits += weights[0]
    return logits


def stack_inputs(seen: Array, num_classes: int, *, with_products: bool) -> Array:
    """Return what a stack weighs, (A, D), from the logs (A, (k + 1) C) of the exits."""
    parts = [seen, np.exp(seen)]
    if with_products:
        factors = np.maximum(seen[:, -num_classes:], SMALLEST_FACTOR)
        first, second = _pairs(num_classes)
        parts.append(factors.take(first, 1) * factors.take(second, 1))
    return np.concatenate(parts, 1)


@cache
def _pairs(num_classes: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return both classes of every pair, a class with itself included."""
    first, second = np.triu_indices(num_classes)
    return first, second


def _precision_of(log_probs: Floats) -> np.dtype[np.floating]:
    """Return the type of the combination of such outputs."""
    precision: np.dtype[np.floating] = np.result_type(log_probs, np.float32)
    return precision


def log_softmax(logits: Array) -> Array:
    """Return log-probabilities (A, C) from logits (A, C)."""
    shifted = logits - logits.max(1, keepdims=True)
    normalised: Array = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return normalised


def probabilities(log_probs: Floats) -> Floats:
    """Return class probabilities (C,); for a segmentation (P, C), their mean over the pixels."""
    probs: Floats = np.exp(log_probs)
    return probs if probs.ndim == 1 else probs.mean(0)


def _check_weights(exit: int, weights: Array | None) -> None:
    if weights is None:
        return
    expected: list[tuple[int, ...]] = [(exit + 1,)]
    if weights.ndim == 2:
        num_classes = weights.shape[1]
        rows = 1 + 2 * (exit + 1) * num_classes
        products = num_classes * (num_classes + 1) // 2
        expected = [(rows, num_classes), (rows + products, num_classes)]
    if weights.shape not in expected or not np.isfinite(weights).all():
        raise ValueError(
            f"the weights that combine exit {exit} have the shape {weights.shape} or are not "
            f"finite; expected {' or '.join(map(str, expected))}; fit the scheduler again"
        )


OWN_OUTPUTS = Combiner()
"""Every exit answers with its own head's output."""
