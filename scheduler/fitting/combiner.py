"""Fit how exits combine the outputs of their heads, by cross-validated log loss."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.combiner import SMALLEST_LOG, Combiner, log_softmax, stack_inputs
from scheduler.fitting.softmax_regression import fit_powers, fit_stack

Floats = NDArray[np.floating]
Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]

FOLDS = 5
MOST_STACKED_CLASSES, MOST_MULTIPLIED_CLASSES = 64, 20
MIN_ROWS, MIN_STACKED_ROWS = 200, 2000  # at 1,000 stacks lost up to 1.5 points on digits
FEW_ROWS_ERRORS = 2.0  # standard errors in place of one where rows are too few for a stack
MAX_POWER_VALUES = 500_000  # log-probabilities of one exit that powers are fitted to: few numbers
RIDGES = (500.0, 100.0, 20.0)  # on each squared weight of an input of standard deviation 1
# Of log p, p and products: what never varied must not explode later.
SMALLEST_SCALES = 0.5, 0.05, 2.0


class FittedCombiner(NamedTuple):
    """A combiner, and what it makes of the calibration rows when it has not seen them.

    Attributes:
        combiner: Fitted to all rows.
        log_probs: Each row combined by a fit without it, (K, N, C); without a combiner, or for a
            segmentation, the outputs of the heads themselves.
    """

    combiner: Combiner
    log_probs: Floats


def fit_combiner(
    log_probs: Floats, labels: Labels | None, weights: Array | None = None, *, seed: int
) -> FittedCombiner:
    """Fit, for each exit, the simplest combination that predicts unseen rows about as well as any.

    Candidates are, from simple to complex: none, powers, stacked on log p and p, stacked on
    products of log p too. The first is chosen whose cross-validated log loss is within one standard
    error of the best's (Breiman et al. 1984, section 3.4.3, on paired differences); none may be
    less often right than the head itself. Below 2,000 rows, and for more than 64 classes, there are
    no stacks, for more than 20 no products; below 200 rows, for a single exit and for segmentations
    nothing is combined.

    Args:
        log_probs: Calibration log-probabilities, finite, (K, N, C) or (K, N, P, C).
        labels: (N,) or (N, P); None: the last exit's answers, so that earlier exits predict them.
            The last exit then keeps its own output.
        weights: How many rows each row counts for, with a mean of 1, (N,); None: 1 each.
        seed: Seed of the folds.
    """
    if log_probs.ndim != 3 or len(log_probs) == 1 or log_probs.shape[1] < MIN_ROWS:
        return FittedCombiner(Combiner(), log_probs)
    num_combined = len(log_probs) if labels is not None else len(log_probs) - 1
    if labels is None:
        labels = log_probs[-1].argmax(1).astype(np.int64)
    folds = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    counts = np.ones(len(labels)) if weights is None else weights
    # Half precision would round different classes to the same number, double takes gigabytes where
    # there are many.
    single = np.result_type(log_probs, np.float32)
    working = np.dtype(np.float64) if log_probs.shape[2] <= MOST_STACKED_CLASSES else single
    unseen = log_probs.astype(single)
    chosen: list[Array | None] = [None] * len(log_probs)
    for exit in range(num_combined):
        logs = np.maximum(log_probs[: exit + 1], SMALLEST_LOG, dtype=working)
        best = simplest_good(_candidates(_Rows(logs, labels, folds, counts)), labels, counts)
        chosen[exit] = best.fit()
        if chosen[exit] is not None:
            unseen[exit] = best.unseen
    if all(fitted is None for fitted in chosen):
        return FittedCombiner(Combiner(), log_probs)
    return FittedCombiner(Combiner(tuple(chosen)), unseen)


class _Rows(NamedTuple):
    """Log-probabilities of the exits so far (J, N, C); label, fold and weight of each row, (N,)."""

    logs: Array
    labels: Labels
    folds: Labels
    weights: Array


class Candidate(NamedTuple):
    """One way to combine.

    Attributes:
        unseen: Each row combined by a fit without it, (N, C).
        fit: Returns the weights of a fit to all rows, as `Combiner` holds them.
    """

    unseen: Array
    fit: Callable[[], Array | None]


def simplest_good(
    candidates: Sequence[Candidate], labels: Labels, weights: Array | None = None
) -> Candidate:
    """Return the first candidate whose log loss is within one standard error of the best's.

    Candidates that are less often right than the first, on rows they have not seen, do not count.
    """
    rows = np.arange(len(labels))
    counts = np.ones(len(labels)) if weights is None else weights
    right = [np.average(each.unseen.argmax(1) == labels, weights=counts) for each in candidates]
    good = [each for each, share in zip(candidates, right, strict=True) if share >= right[0]]
    losses = np.stack([-each.unseen[rows, labels] for each in good])  # (J, N)
    excess = losses - losses[np.average(losses, 1, counts).argmin()]
    errors = 1.0 if len(labels) >= MIN_STACKED_ROWS else FEW_ROWS_ERRORS
    means = np.average(excess, 1, counts)
    spread = (excess - means[:, None]) * counts
    allowed = errors * np.sqrt((spread**2).sum(1)) / counts.sum()  # of a weighted mean
    return good[int((means <= allowed).argmax())]


def _candidates(rows: _Rows) -> list[Candidate]:
    """Return all candidates for the last of these exits, the simplest first."""
    own = rows.logs[-1]
    powers, held_out = _cross_fit_powers(rows)
    by_powers = np.empty_like(own)
    for fold, each in enumerate(held_out):
        chosen = rows.folds == fold
        by_powers[chosen] = log_softmax(_pooled(rows.logs[:, chosen], each))
    candidates = [Candidate(own, lambda: None), Candidate(by_powers, lambda: powers)]
    if len(own) >= MIN_STACKED_ROWS and own.shape[1] <= MOST_STACKED_CLASSES:
        forms = [False, True] if own.shape[1] <= MOST_MULTIPLIED_CLASSES else [False]
        candidates += [_Stack(rows, powers, held_out, form).candidate() for form in forms]
    return candidates


def _cross_fit_powers(rows: _Rows) -> tuple[Array, Array]:
    """Fit powers to all rows, (J,), and to the rows outside each fold, (FOLDS, J)."""
    logs, labels, folds, weights = rows
    most = MAX_POWER_VALUES // logs.shape[2]

    def fit(chosen: Labels) -> Array:
        few = chosen[:most]
        return fit_powers(logs[:, few], labels[few], weights[few])

    held_out = np.stack([fit(np.flatnonzero(folds != fold)) for fold in range(FOLDS)])
    return fit(np.arange(len(labels))), held_out


def _pooled(logs: Array, powers: Array) -> Array:
    """Return the logits sum_j w_j log p_j, (J, N, C) to (N, C)."""
    logits: Array = np.tensordot(powers.astype(logs.dtype), logs, 1)
    return logits


class _Stack:
    """Regressions on log p and p of the exits so far, on top of their powers.

    Args:
        rows: The exits so far.
        powers: Fitted to all rows, (J,).
        held_out: Fitted to the rows outside each fold, (FOLDS, J).
        with_products: Whether the inputs hold products of log p too.
    """

    def __init__(self, rows: _Rows, powers: Array, held_out: Array, with_products: bool) -> None:
        self._rows, self._powers, self._held_out = rows, powers, held_out
        seen = np.concatenate(rows.logs, 1)  # (N, J C)
        inputs = stack_inputs(seen, rows.logs.shape[2], with_products=with_products)
        products = inputs.shape[1] - 2 * seen.shape[1]
        floors = np.repeat(SMALLEST_SCALES, [seen.shape[1], seen.shape[1], products])
        self._mean = np.average(inputs, 0, rows.weights)
        spread = np.sqrt(np.average((inputs - self._mean) ** 2, 0, rows.weights))
        self._scale = np.maximum(spread, floors)
        scaled = (inputs - self._mean) / self._scale
        self._inputs = np.concatenate([np.ones((len(scaled), 1)), scaled], 1)

    def candidate(self) -> Candidate:
        """Cross-fit with each ridge and keep the better one."""
        labels, tried = self._rows.labels, []
        size = self._inputs.shape[1], self._rows.logs.shape[2]
        starts = [np.zeros(size)] * FOLDS
        for ridge in RIDGES:
            unseen = np.empty(self._rows.logs.shape[1:])
            for fold, powers in enumerate(self._held_out):
                out, offsets = self._rows.folds == fold, _pooled(self._rows.logs, powers)
                starts[fold] = self._fit(ridge, ~out, offsets, starts[fold])
                unseen[out] = log_softmax(offsets[out] + self._inputs[out] @ starts[fold])
            of_label = unseen[np.arange(len(labels)), labels]
            loss = -np.average(of_label, weights=self._rows.weights)
            tried.append((float(loss), ridge, unseen))
        _, best, unseen = min(tried, key=lambda each: each[0])
        return Candidate(unseen, lambda: self._fit_all(best, starts[0]))

    def _fit(self, ridge: float, chosen: Mask, offsets: Array, start: Array) -> Array:
        """Fit the weights of the scaled inputs, (D, C), to the chosen rows (N,)."""
        penalty = np.full(self._inputs.shape[1], ridge)
        labels, weights = self._rows.labels[chosen], self._rows.weights[chosen]
        return fit_stack(self._inputs[chosen], offsets[chosen], labels, penalty, start, weights)

    def _fit_all(self, ridge: float, start: Array) -> Array:
        """Fit to all rows, and put powers and scales into the weights (D, C) of plain inputs."""
        offsets = _pooled(self._rows.logs, self._powers)
        weights = self._fit(ridge, np.ones(len(offsets), np.bool_), offsets, start)
        weights[1:] /= self._scale[:, None]
        weights[0] -= self._mean @ weights[1:]
        num_classes = weights.shape[1]
        for exit, power in enumerate(self._powers):
            place = 1 + exit * num_classes
            weights[place : place + num_classes] += power * np.eye(num_classes)
        return weights
