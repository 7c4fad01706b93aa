"""Fit the stopping policy: logistic regressions, backwards from the last exit."""

import numpy as np
from numpy.typing import NDArray

from scheduler.confidence import logistic
from scheduler.frontier import GRID_STEP
from scheduler.pixels import correct_share, row_means
from scheduler.policy import CalibrationSet, exits_taken, replay
from scheduler.stopping import NUM_FEATURES, StoppingPolicy, stopping_features

Array = NDArray[np.float64]

PRICE_RATIO = 1.6  # between neighbours of the grid of prices
MAX_PRICES = 32
FOLDS = 4
FEATURE_PENALTY, CLASS_PENALTY, INTERCEPT_PENALTY = 10.0, 10.0, 1e-2
MAX_CLASS_OFFSETS = 128  # with more classes a calibration set has too few rows of each
NEWTON_STEPS, NEWTON_TOLERANCE = 25, 1e-6
MAX_LADDER, LADDER_ROUNDS = 1000, 14


def fit(calibration: CalibrationSet, seed: int) -> StoppingPolicy:
    """Fit the policy for the table of policies."""
    return fit_stopping(*calibration, seed=seed)


def parameters(policy: StoppingPolicy, calibration: CalibrationSet) -> Array:
    """List the policy's prices for the table of policies."""
    log_probs, _, costs_ms, weights = calibration
    return price_ladder(policy, log_probs, costs_ms, weights)


def fit_stopping(
    log_probs: NDArray[np.floating],
    labels: NDArray[np.int64],
    costs_ms: Array,
    row_weights: Array | None = None,
    *,
    seed: int = 0,
) -> StoppingPolicy:
    """Fit P(correct) and, by backward induction at every price, the value of running on.

    The targets of those regressions come from cross-fitted P(correct), so that a row's own label
    never enters its own continuation value.

    Args:
        log_probs: Calibration log-probabilities, (K, N, C) or (K, N, P, C).
        labels: (N,) or (N, P).
        costs_ms: Latency from the start until each exit, rising, (K,).
        row_weights: As in `CalibrationSet`, (N,).
        seed: Seed of the folds.
    """
    num_exits, num_rows = log_probs.shape[:2]
    steps_ms, prices = np.diff(costs_ms), _price_grid(costs_ms)
    correct = correct_share(log_probs, labels)
    folds = np.random.default_rng(seed).permutation(num_rows) % FOLDS
    designs = _designs(log_probs, row_weights)
    chances, held_out = [], np.empty((num_rows, num_exits))
    for k, design in enumerate(designs):
        chances.append(design.regress(correct[:, k]))
        for fold in range(FOLDS):
            rest, rows = folds != fold, folds == fold
            part = design.regress(correct[rest, k], rest, chances[k])
            held_out[rows, k] = design.predict(part, rows)
    ahead = _continuation_weights(designs, chances, held_out, prices, steps_ms)
    columns = [np.stack([chances[k], *ahead[k]], 1) for k in range(num_exits - 1)]
    raw = [
        design.unscaled(weights)
        for design, weights in zip(designs, [*columns, chances[-1][:, None]], strict=True)
    ]
    return StoppingPolicy(
        prices, steps_ms, tuple(pair[0] for pair in raw), tuple(pair[1] for pair in raw)
    )


def _continuation_weights(
    designs: list["_Design"], chances: list[Array], held_out: Array, prices: Array, steps_ms: Array
) -> list[Array]:
    """Regress the value of running on at each exit but the last and each price, K - 1 of (G, D).

    Args:
        designs: The regression inputs of each exit.
        chances: The weights of P(correct) at each exit, from which the regressions start.
        held_out: P(correct) of each row, fitted without it, (N, K).
        prices: (G,).
        steps_ms: (K - 1,).
    """
    ahead = [np.empty((len(prices), design.inputs.shape[1])) for design in designs[:-1]]
    for g, price in enumerate(prices):
        value = held_out[:, -1]
        for k in reversed(range(len(ahead))):
            start = ahead[k][g - 1] if g > 0 else chances[k]
            ahead[k][g] = designs[k].regress(value.clip(0, 1), start=start)
            continuation = designs[k].predict(ahead[k][g]) - price * steps_ms[k]
            value = np.maximum(held_out[:, k], continuation)
    return ahead


def price_ladder(
    policy: StoppingPolicy,
    log_probs: NDArray[np.floating],
    costs_ms: Array,
    row_weights: Array | None = None,
) -> Array:
    """Return falling prices, from "leave at the first exit" to "run to the last", (G,).

    From one price to the next the mean cost of the rows rises by at most about one step of the
    budget grid, or by as little as ties allow.
    """
    replayed = replay(policy, log_probs)

    def cost(price: float) -> float:
        return float(
            np.average(costs_ms[exits_taken(policy, replayed, price)], weights=row_weights)
        )

    mirrored = -policy.prices[(policy.prices > 0) & (policy.prices < -policy.never_exit_parameter)]
    ladder = [
        policy.exit_at_first_parameter,
        *policy.prices[::-1],
        *mirrored,
        policy.never_exit_parameter,
    ]
    spent = [cost(price) for price in ladder]
    finest = 1e-9 * (ladder[0] - ladder[-1])
    for _ in range(LADDER_ROUNDS):
        for i in reversed(range(len(ladder) - 1)):
            wide = abs(spent[i + 1] - spent[i]) > GRID_STEP * spent[i]
            if wide and ladder[i] - ladder[i + 1] > finest and len(ladder) < MAX_LADDER:
                ladder.insert(i + 1, (ladder[i] + ladder[i + 1]) / 2)
                spent.insert(i + 1, cost(ladder[i + 1]))
    return np.array(ladder)


class _Design:
    """The inputs of the regressions at one exit: scaled features and the predicted class, one-hot.

    For rows of several pixels, the share of the pixels that predict each class.
    """

    def __init__(
        self,
        features: Array,
        classes: NDArray[np.intp],
        num_classes: int,
        row_weights: Array | None,
    ) -> None:
        self.num_classes, self.row_weights = num_classes, row_weights
        self.mean = np.average(features, 0, row_weights)
        self.scale = np.sqrt(np.average((features - self.mean) ** 2, 0, row_weights))
        self.scale[self.scale < 1e-9] = 1.0  # constant features: the intercept and unused ones
        self.mean[0] = 0.0
        scaled = (features - self.mean) / self.scale
        with_offsets = num_classes <= MAX_CLASS_OFFSETS
        one_hot = np.eye(num_classes)[classes] if with_offsets else np.empty((len(classes), 0))
        self.inputs = np.concatenate([scaled, row_means(one_hot, len(scaled))], 1)
        self.penalty = np.full(self.inputs.shape[1], CLASS_PENALTY)
        self.penalty[:NUM_FEATURES] = FEATURE_PENALTY
        self.penalty[0] = INTERCEPT_PENALTY

    def regress(
        self, targets: Array, rows: NDArray[np.bool_] | None = None, start: Array | None = None
    ) -> Array:
        """Fit targets in [0, 1] on the chosen rows; returns the weights (D,)."""
        inputs = self.inputs if rows is None else self.inputs[rows]
        weights = self.row_weights
        if rows is not None and weights is not None:
            weights = weights[rows]
        return logistic_regression(inputs, targets, self.penalty, start, weights)

    def predict(self, weights: Array, rows: NDArray[np.bool_] | None = None) -> Array:
        """Return the probabilities that weights (D,) give the chosen rows."""
        return logistic((self.inputs if rows is None else self.inputs[rows]) @ weights)

    def unscaled(self, weights: Array) -> tuple[Array, Array]:
        """Turn weights (D, J) into those of unscaled features, (F, J), and class offsets (C, J)."""
        plain = weights[:NUM_FEATURES] / self.scale[:, None]
        plain[0] -= self.mean[1:] @ plain[1:]
        offsets = np.zeros((self.num_classes, weights.shape[1]))
        offsets[: len(weights) - NUM_FEATURES] = weights[NUM_FEATURES:]
        return plain, offsets


def _designs(log_probs: NDArray[np.floating], row_weights: Array | None) -> list[_Design]:
    num_rows, num_classes = log_probs.shape[1], log_probs.shape[-1]
    history, designs = np.zeros((num_rows, num_classes)), []
    for exit, rows in enumerate(log_probs):
        features, classes, history = stopping_features(exit, rows, history)
        designs.append(_Design(features, classes, num_classes, row_weights))
    return designs


def _price_grid(costs_ms: Array) -> Array:
    """Return 0, then prices that rise geometrically until running on never pays, (G,)."""
    steps = np.diff(costs_ms)
    low, high = 0.005 / (costs_ms[-1] - costs_ms[0]), 0.5 / steps.min()
    count = int(np.ceil(np.log(high / low) / np.log(PRICE_RATIO))) + 1
    return np.concatenate([[0.0], np.geomspace(low, high, min(count, MAX_PRICES))])


def logistic_regression(
    inputs: Array,
    targets: Array,
    penalty: Array,
    start: Array | None = None,
    row_weights: Array | None = None,
) -> Array:
    """Fit a ridge-penalised logistic regression with fractional targets by damped Newton steps.

    Args:
        inputs: (N, D), the first column 1.
        targets: In [0, 1], (N,).
        penalty: The penalty on each squared weight, positive, (D,).
        start: Weights to start from, (D,).
        row_weights: How many rows each row counts for, (N,); None: 1 each.

    Returns:
        Weights (D,).
    """
    if start is None:
        start = np.zeros(inputs.shape[1])
        mean = np.clip(np.average(targets, weights=row_weights), 1e-3, 1 - 1e-3)
        start[0] = np.log(mean / (1 - mean))
    counts = np.ones(len(targets)) if row_weights is None else row_weights
    weights, loss = start, _penalised_loss(start, inputs, targets, penalty, counts)
    for _ in range(NEWTON_STEPS):
        chances = logistic(inputs @ weights)
        gradient = inputs.T @ (counts * (chances - targets)) + penalty * weights
        curvature = counts * np.maximum(chances * (1 - chances), 1e-6)
        hessian = (inputs * curvature[:, None]).T @ inputs + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (
            better := _penalised_loss(weights - size * step, inputs, targets, penalty, counts)
        ) > loss and size > 1e-4:
            size /= 2
        if better > loss:
            break
        weights, gain, loss = weights - size * step, loss - better, better
        if gain < NEWTON_TOLERANCE * len(targets):
            break
    return weights


def _penalised_loss(
    weights: Array, inputs: Array, targets: Array, penalty: Array, counts: Array
) -> float:
    logits = inputs @ weights
    entropy = np.logaddexp(0, logits) - targets * logits
    return float(counts @ entropy + penalty @ weights**2 / 2)
