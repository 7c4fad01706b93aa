"""Fit thresholds to given scores: geometric as published, or optimised under the budget."""

import numpy as np
from numpy.typing import NDArray

from scheduler.baselines import ConfidencePolicy, PatiencePolicy
from scheduler.frontier import budget_grid
from scheduler.pixels import correct_share
from scheduler.policy import CalibrationSet, score_all
from scheduler.thresholds import ThresholdTable, route, tabulate

Array = NDArray[np.float64]

NUM_PRICES = 40
MAX_SWEEPS = 8


def fit_kind(kind: str, calibration: CalibrationSet, seed: int) -> ConfidencePolicy:
    """Fit a policy of `ConfidencePolicy` for the table of policies; nothing is random."""
    return fit_confidence(kind, *calibration)


def fit_patience_kind(calibration: CalibrationSet, seed: int) -> PatiencePolicy:
    """Fit the patience policy for the table of policies; nothing is random."""
    return fit_patience(calibration.log_probs, calibration.costs_ms, calibration.weights)


def fit_confidence(
    kind: str,
    log_probs: NDArray[np.floating],
    labels: NDArray[np.int64],
    costs_ms: Array,
    weights: Array | None = None,
) -> ConfidencePolicy:
    """Fit thresholds on an unlearned confidence for every budget.

    Args:
        kind: maxprob, entropy, maxprob-opt or entropy-opt. `-opt` optimises the thresholds for
            accuracy under the budget; the others take them from geometric exit distributions
            (MSDNet, section 5.2).
        log_probs: Calibration log-probabilities, (K, N, C) or (K, N, P, C).
        labels: (N,) or (N, P).
        costs_ms: Latency from the start until each exit, rising, (K,).
        weights: As in `CalibrationSet`, (N,).
    """
    scores = score_all(ConfidencePolicy(ThresholdTable.closed(len(costs_ms)), kind), log_probs)
    if kind.endswith("-opt"):
        correct = correct_share(log_probs, labels)
        return ConfidencePolicy(optimised_table(scores, correct, costs_ms, weights), kind)
    return ConfidencePolicy(geometric_table(scores, costs_ms, weights), kind)


def fit_patience(
    log_probs: NDArray[np.floating], costs_ms: Array, weights: Array | None = None
) -> PatiencePolicy:
    """Fit thresholds on runs of equal predictions; arguments as in `fit_confidence`."""
    scores = score_all(PatiencePolicy(ThresholdTable.closed(len(costs_ms))), log_probs)
    return PatiencePolicy(geometric_table(scores, costs_ms, weights))


def geometric_table(scores: Array, costs_ms: Array, weights: Array | None = None) -> ThresholdTable:
    """Return thresholds on scores (N, K) for every budget, from geometric exit distributions."""
    budgets = budget_grid(costs_ms)
    targets = np.stack([geometric_distribution(costs_ms, budget) for budget in budgets])
    return tabulate(scores, costs_ms, budgets, targets, weights=weights)


def geometric_distribution(costs: Array, budget: float) -> Array:
    """Return the exit distribution p_k proportional to q^k that costs the budget (MSDNet, 5.2).

    Args:
        costs: Rising costs (K,).
        budget: Between the first and the last cost.

    Returns:
        p (K,). Outside that range all of it is at the first or the last exit.
    """
    if budget <= costs[0] or budget >= costs[-1]:
        ends = np.zeros(len(costs))
        ends[0 if budget <= costs[0] else -1] = 1.0
        return ends
    low, high = -700.0, 700.0  # log q; e^700 is about the largest that float64 holds
    for _ in range(200):
        middle = (low + high) / 2
        exponents = middle * np.arange(len(costs))
        weights = np.exp(exponents - exponents.max())
        distribution: Array = weights / weights.sum()
        if middle in (low, high):  # no number lies between them
            break
        if distribution @ costs > budget:
            high = middle
        else:
            low = middle
    return distribution


def optimised_table(
    scores: Array, correct: Array, costs_ms: Array, weights: Array | None = None
) -> ThresholdTable:
    """Return thresholds on scores that maximise accuracy under every budget.

    At a price per millisecond, each threshold in turn moves to the value with the most right
    predictions minus priced cost, until none moves. All prices together give the upper hull of the
    accuracies that thresholds on these scores reach; between two of its points the exit
    distribution is interpolated. The part of a budget that no longer raises accuracy is not spent.

    Args:
        scores: (N, K).
        correct: The share of each row that each exit has right, in [0, 1], (N, K).
        costs_ms: Rising costs (K,).
        weights: As in `CalibrationSet`, (N,).
    """
    num_exits = len(costs_ms)
    counts = np.ones(len(scores)) if weights is None else weights
    budgets = budget_grid(costs_ms)
    highest = 1 / np.diff(costs_ms).min()
    # The last price is almost 0: it only breaks ties, in favour of the cheaper exit.
    prices = np.append(np.geomspace(highest, highest * 1e-4, NUM_PRICES), highest * 1e-9)
    costs, shares = [float(costs_ms[0])], [np.eye(num_exits)[0]]
    orders = np.argsort(-scores, axis=0, kind="stable")
    thresholds = np.r_[[-np.inf] * num_exits]
    for price in prices:
        gains = (correct - price * costs_ms) * counts[:, None]
        thresholds = _best_thresholds(scores, orders, gains, thresholds)
        exits = route(scores, thresholds)
        if (cost := float(np.average(costs_ms[exits], weights=counts))) > costs[-1]:
            costs.append(cost)
            shares.append(np.bincount(exits, counts, num_exits) / counts.sum())
    targets = np.stack([np.interp(budgets, costs, column) for column in np.transpose(shares)], 1)
    spent = np.minimum(budgets, costs[-1])
    return tabulate(scores, costs_ms, spent, targets, parameters=budgets, weights=weights)


def _best_thresholds(scores: Array, orders: NDArray[np.intp], gains: Array, start: Array) -> Array:
    """Maximise the mean gain (N, K) of the exits taken by coordinate ascent from `start` (K,)."""
    thresholds, num_exits = start.copy(), scores.shape[1]
    for _ in range(MAX_SWEEPS):
        before = thresholds.copy()
        for k in reversed(range(num_exits - 1)):
            reaches = (scores[:, :k] < thresholds[:k]).all(1)
            later = k + 1 + route(scores[:, k + 1 :], thresholds[k + 1 :])
            advantage = np.where(reaches, gains[:, k] - gains[np.arange(len(gains)), later], 0.0)
            ranked = scores[orders[:, k], k]
            total = np.cumsum(advantage[orders[:, k]])
            total[:-1][ranked[1:] == ranked[:-1]] = -np.inf  # ties leave together
            best = int(total.argmax())
            thresholds[k] = ranked[best] if total[best] > 0 else np.inf
        if (before == thresholds).all():
            break
    return thresholds
