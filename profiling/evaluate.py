"""What a fitted scheduler makes of predictions it has not seen."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from profiling.calibration import Predictions
from scheduler.policy import score_all
from scheduler.scheduler import Scheduler
from scheduler.thresholds import route


class Evaluation(NamedTuple):
    """Realised figures of one budget on one set."""

    budget_ms: float
    cost_ms: float
    accuracy: float
    exit_rates: list[float]


def evaluate(
    scheduler: Scheduler, predictions: Predictions, budgets_ms: Sequence[float]
) -> list[Evaluation]:
    """Replay a scheduler at fixed budgets, no control on top.

    Args:
        scheduler: The policy and its frontier, whose costs are used.
        predictions: Of N rows.
        budgets_ms: Mean-cost budgets.
    """
    scores = score_all(scheduler.policy, predictions.log_probs)
    correct, costs = predictions.correct, scheduler.frontier.costs_ms
    results = []
    for budget in budgets_ms:
        exits = route(
            scores, scheduler.policy.thresholds(scheduler.frontier.at_cost(budget).parameter)
        )
        rates = [float((exits == k).mean()) for k in range(len(costs))]
        accuracy = float(correct[np.arange(len(exits)), exits].mean())
        results.append(Evaluation(float(budget), float(costs[exits].mean()), accuracy, rates))
    return results


def spread_budgets(costs_ms: NDArray[np.float64], count: int = 7) -> list[float]:
    """Budgets at even distances inside the range of costs."""
    return [float(budget) for budget in np.linspace(costs_ms[0], costs_ms[-1], count + 2)[1:-1]]
