"""Fitting max-probability thresholds: geometric exit distributions, as published."""

import numpy as np
from numpy.typing import NDArray

from scheduler.baselines import MaxProbPolicy, geometric_distribution
from scheduler.confidence import max_probability
from scheduler.frontier import budget_grid, tabulate
from scheduler.scheduler import Scheduler


def fit_maxprob(
    log_probs: NDArray[np.floating], labels: NDArray[np.int64], costs_ms: NDArray[np.float64]
) -> Scheduler:
    """Thresholds for every budget by geometric exit distributions (MSDNet, section 5.2).

    Args:
        log_probs: Calibration log-probabilities, (K, N, C).
        labels: (N,).
        costs_ms: Latency from the start until each exit, rising, (K,).
    """
    budgets = budget_grid(costs_ms)
    distributions = np.stack([geometric_distribution(costs_ms, budget) for budget in budgets])
    correct = (log_probs.argmax(-1) == labels).T
    table, frontier = tabulate(
        max_probability(log_probs).T, correct, costs_ms, budgets, distributions
    )
    return Scheduler(MaxProbPolicy(table), frontier)
