"""Combined answers: an exit answers from all heads so far, not from its own alone.

    log p'_k = log softmax(sum_{j <= k} w_j log p_j + b + A [log p_0 .. log p_k, p_0 .. p_k])

Powers w alone are a logarithmic opinion pool (Genest and Zidek 1986); b and A make it a stacked
generalisation (Wolpert 1992). Policies, frontiers and answers all read the combined predictions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import mul
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Array = NDArray[np.float64]

SMALLEST_LOG = -25.0  # of a probability that is read: below it, one head would overrule all others
FEW_CLASSES = 64  # up to which one row is combined in plain Python
CHUNK_ROWS = 4096


class Combined(NamedTuple):
    """The outcome of A rows at one exit.

    Attributes:
        log_probs: Combined log-probabilities, (A, C), of the type that came in.
        memory: What later exits read of these rows, (A, M).
    """

    log_probs: Floats
    memory: Array


@dataclass(frozen=True)
class Combiner:
    """How each exit's answer follows from the outputs of its own head and of those before it.

    The default answers with each head's own output, for any number of exits, and for segmentations.

    Attributes:
        weights: One entry per exit; none at all: each head's own output. The entry of exit k is
            None: its head's own output; (k + 1,): the powers w of the exits so far; or
            (1 + (k + 1) C, C): the weights of [1, log p_0 .. log p_k], with w on the diagonals; or
            (1 + 2 (k + 1) C, C): the weights of [1, log p_0 .. log p_k, p_0 .. p_k].
    """

    weights: tuple[Array | None, ...] = ()
    _columns: list[list[list[float]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for exit, weights in enumerate(self.weights):
            _check_weights(exit, weights)
        columns = [[] if each is None else np.atleast_2d(each.T).tolist() for each in self.weights]
        object.__setattr__(self, "_columns", columns)

    def needs(self, exit: int) -> bool:
        """Whether the combination of a later exit reads the output of this exit's head."""
        return any(each is not None for each in self.weights[exit + 1 :])

    def start(self, rows: int) -> Array:
        """Return the memory (rows, 0) of rows that have not reached any exit yet."""
        return np.empty((rows, 0))

    def combine(self, exit: int, log_probs: Floats, memory: Array) -> Combined:
        """Combine the output of an exit's head with those of the exits before.

        Rows never influence each other.

        Args:
            exit: k, 0-based.
            log_probs: Finite log-probabilities of this exit's head, (A, C). If no exit combines
                anything, rows of pixels (A, P, C) pass too.
            memory: The result of `start` or of the previous exit, for these rows, (A, M).

        Raises:
            ValueError: If the memory lacks an exit that this one or a later one reads.
        """
        weights = self.weights[exit] if self.weights else None
        needed = self.needs(exit)
        if weights is None and not needed:
            return Combined(log_probs, memory)
        num_rows, num_classes = log_probs.shape
        if memory.shape != (num_rows, exit * num_classes):
            raise ValueError(
                f"the memory of {num_rows} rows at exit {exit} has the shape {memory.shape}, not "
                f"{(num_rows, exit * num_classes)}; run every head that `needs` names"
            )
        if num_rows == 1 and num_classes <= FEW_CLASSES:
            return self._combine_one_row(exit, log_probs, memory, needed)
        logs = np.maximum(log_probs, SMALLEST_LOG, dtype=np.float64)
        seen = np.concatenate([memory, logs], 1)  # (A, (k + 1) C)
        combined = log_probs if weights is None else _combine_rows(weights, seen, num_classes)
        return Combined(combined.astype(log_probs.dtype, copy=False), seen if needed else memory)

    def combine_all(self, log_probs: Floats) -> Floats:
        """Combine recorded predictions (K, N, C), as serving does; the same shape and type.

        Segmentations (K, N, P, C) pass unchanged if no exit combines anything.
        """
        if not any(each is not None for each in self.weights):
            return log_probs
        combined = np.empty_like(log_probs)
        for first in range(0, log_probs.shape[1], CHUNK_ROWS):
            rows = log_probs[:, first : first + CHUNK_ROWS]
            memory = self.start(rows.shape[1])
            for exit, outputs in enumerate(rows):
                result, memory = self.combine(exit, outputs, memory)
                combined[exit, first : first + CHUNK_ROWS] = result
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

    def _combine_one_row(
        self, exit: int, log_probs: Floats, memory: Array, needed: bool
    ) -> Combined:
        """Combine one row in plain Python: at so few numbers, numpy's cost per call dominates."""
        num_classes, weights = log_probs.shape[1], self.weights[exit]
        seen: list[float] = memory[0].tolist()
        seen += [max(log, SMALLEST_LOG) for log in log_probs[0].tolist()]
        kept = np.array([seen]) if needed else memory
        if weights is None:
            return Combined(log_probs, kept)
        columns = self._columns[exit]
        if weights.ndim == 1:
            logits = [sum(map(mul, columns[0], seen[c::num_classes])) for c in range(num_classes)]
        else:
            with_probs = len(weights) > 1 + len(seen)
            features = [1.0, *seen, *map(math.exp, seen)] if with_probs else [1.0, *seen]
            logits = [sum(map(mul, features, column)) for column in columns]
        highest = max(logits)
        log_sum = highest + math.log(sum([math.exp(logit - highest) for logit in logits]))
        return Combined(np.array([[x - log_sum for x in logits]], log_probs.dtype), kept)


def _combine_rows(weights: Array, seen: Array, num_classes: int) -> Array:
    """Return the combined log-probabilities (A, C) of the logs (A, (k + 1) C) of the exits."""
    if weights.ndim == 1:
        exits = seen.reshape(len(seen), len(weights), num_classes)
        return log_softmax(np.einsum("akc,k->ac", exits, weights))
    with_probs = len(weights) > 1 + seen.shape[1]
    features = np.concatenate([seen, np.exp(seen)], 1) if with_probs else seen
    return log_softmax(features @ weights[1:] + weights[0])


def log_softmax(logits: Array) -> Array:
    """Return log-probabilities (A, C) from logits (A, C)."""
    shifted = logits - logits.max(1, keepdims=True)
    normalised: Array = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return normalised


def _check_weights(exit: int, weights: Array | None) -> None:
    if weights is None:
        return
    expected: list[tuple[int, ...]] = [(exit + 1,)]
    if weights.ndim == 2:
        num_classes = weights.shape[1]
        expected = [(1 + blocks * (exit + 1) * num_classes, num_classes) for blocks in (1, 2)]
    if weights.shape not in expected or not np.isfinite(weights).all():
        raise ValueError(
            f"the weights that combine exit {exit} have the shape {weights.shape} or are not "
            f"finite; expected {' or '.join(map(str, expected))}; fit the scheduler again"
        )
