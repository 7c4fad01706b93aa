"""Multinomial logistic regressions that start from log-probabilities of several exits.

Both minimise the summed log loss of softmax(logits) plus a ridge penalty: `fit_powers` by Newton
steps in a few powers, `fit_stack` by L-BFGS (Liu and Nocedal 1989) in a matrix of weights.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scheduler.combiner import log_softmax

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

POWER_PENALTY = 10.0
NEWTON_STEPS, LBFGS_STEPS, LBFGS_MEMORY = 20, 100, 8
TOLERANCE = 1e-6  # of the loss per row, at which both stop
SMALLEST_STEP = 1e-4
SUFFICIENT_DECREASE = 1e-4  # Armijo's share of the decrease that the gradient promises


def fit_powers(logs: Array, labels: Labels, row_weights: Array | None = None) -> Array:
    """Fit the powers w of softmax(sum_j w_j log p_j), drawn towards the last exit's output alone.

    Args:
        logs: Log-probabilities of the exits so far, (J, N, C).
        labels: (N,).
        row_weights: How many rows each row counts for, (N,); None: 1 each.

    Returns:
        Powers (J,).
    """
    counts = np.ones(len(labels)) if row_weights is None else row_weights
    alone = np.eye(len(logs))[-1]
    of_label = logs[:, np.arange(len(labels)), labels]  # (J, N)

    def loss_of(powers: Array) -> tuple[float, Array]:
        log_probs = log_softmax(np.tensordot(powers, logs, 1))
        loss = -counts @ log_probs[np.arange(len(labels)), labels]
        return float(loss + POWER_PENALTY * ((powers - alone) ** 2).sum() / 2), log_probs

    powers, (loss, log_probs) = alone, loss_of(alone)
    for _ in range(NEWTON_STEPS):
        probs = np.exp(log_probs)
        weighted = logs * probs
        means = weighted.sum(2)
        weighted *= counts[:, None]
        gradient = (means - of_label) @ counts + POWER_PENALTY * (powers - alone)
        # A product of two matrices: einsum takes ten times as long for a thousand classes.
        products = weighted.reshape(len(logs), -1) @ logs.reshape(len(logs), -1).T
        products -= (counts * means) @ means.T
        step = np.linalg.solve(products + POWER_PENALTY * np.eye(len(logs)), gradient)
        size = 1.0
        while (new := loss_of(powers - size * step))[0] > loss and size > SMALLEST_STEP:
            size /= 2
        if new[0] > loss:
            break
        powers, gain, (loss, log_probs) = powers - size * step, loss - new[0], new
        if gain < TOLERANCE * len(labels):
            break
    fitted: Array = powers
    return fitted


def fit_stack(
    inputs: Array,
    offsets: Array,
    labels: Labels,
    penalty: Array,
    start: Array,
    row_weights: Array | None = None,
) -> Array:
    """Fit the weights B of softmax(offsets + inputs B) under a ridge.

    Args:
        inputs: (N, D).
        offsets: Logits that the weights correct, (N, C).
        labels: (N,).
        penalty: The penalty on the squared weights of each input, positive, (D,).
        start: Weights to start from, (D, C).
        row_weights: How many rows each row counts for, (N,); None: 1 each.

    Returns:
        Weights (D, C).
    """
    rows = np.arange(len(labels))
    counts = np.ones(len(labels)) if row_weights is None else row_weights

    def loss_of(weights: Array) -> tuple[float, Array]:
        log_probs = log_softmax(offsets + inputs @ weights)
        residuals = np.exp(log_probs)
        residuals[rows, labels] -= 1
        residuals *= counts[:, None]
        drawn = penalty[:, None] * weights
        loss = (drawn * weights).sum() / 2 - counts @ log_probs[rows, labels]
        return float(loss), inputs.T @ residuals + drawn

    # In each class's block the Hessian is about the mean of p (1 - p) times X'X, plus the penalty.
    probs = np.exp(log_softmax(offsets))
    curvature = float(np.average((probs * (1 - probs)).mean(1), weights=counts))
    products = (counts[:, None] * inputs).T @ inputs
    inverse = np.linalg.inv(curvature * products + np.diag(penalty))
    return minimise(loss_of, start, inverse.astype(np.float64), TOLERANCE * len(labels))


def minimise(
    loss_of: Callable[[Array], tuple[float, Array]], start: Array, inverse: Array, tolerance: float
) -> Array:
    """Minimise a smooth convex function of a matrix (D, C) by L-BFGS with backtracking.

    Args:
        loss_of: Returns the value and the gradient (D, C) at weights (D, C).
        start: (D, C).
        inverse: A guess of the inverse Hessian, the same for every column, (D, D).
        tolerance: A step that gains less is the last.
    """
    weights, (loss, gradient) = start, loss_of(start)
    history: list[tuple[Array, Array]] = []
    for _ in range(LBFGS_STEPS):
        step = _lbfgs_step(gradient, history, inverse)
        slope, size = float((gradient * step).sum()), 1.0
        while (new := loss_of(weights - size * step))[
            0
        ] > loss - SUFFICIENT_DECREASE * size * slope:
            size /= 2
            if size < SMALLEST_STEP:
                return weights
        moved, turned = -size * step, new[1] - gradient
        if (moved * turned).sum() > 0:
            history = [*history[1 - LBFGS_MEMORY :], (moved, turned)]
        gain = loss - new[0]
        weights, (loss, gradient) = weights + moved, new
        if gain < tolerance:
            break
    return weights


def _lbfgs_step(gradient: Array, history: list[tuple[Array, Array]], inverse: Array) -> Array:
    """Apply the estimated inverse Hessian to a gradient, both (D, C): the two-loop recursion."""
    rest, shares = gradient, []
    for moved, turned in reversed(history):
        share = (moved * rest).sum() / (moved * turned).sum()
        rest = rest - share * turned
        shares.append(share)
    step: Array = inverse @ rest
    for (moved, turned), share in zip(history, reversed(shares), strict=True):
        step = step + (share - (turned * step).sum() / (moved * turned).sum()) * moved
    return step
