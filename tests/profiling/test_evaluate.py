import numpy as np
import pytest

from profiling.calibration import Predictions
from profiling.evaluate import evaluate, spread_budgets
from scheduler.baselines import MaxProbPolicy
from scheduler.frontier import Frontier
from scheduler.scheduler import Scheduler
from scheduler.thresholds import ThresholdTable


def by_hand() -> tuple[Scheduler, Predictions]:
    """Two exits at 1 and 3 ms; at parameter 2 the rows that are 0.8 sure leave at the first."""
    parameters = np.array([1.0, 2.0, 3.0])
    thresholds = np.array([[-np.inf, -np.inf], [0.8, -np.inf], [np.inf, -np.inf]])
    rates = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    frontier = Frontier(parameters, rates, np.array([0.5, 0.8, 0.9]), np.array([1.0, 3.0]))
    sure_of_1 = np.array([[0.9, 0.85, 0.7, 0.3], [0.6, 0.2, 0.1, 0.9]])  # (K, N)
    log_probs = np.log(np.stack([1 - sure_of_1, sure_of_1], -1)).astype(np.float16)
    return (
        Scheduler(MaxProbPolicy(ThresholdTable(parameters, thresholds)), frontier),
        Predictions(log_probs, np.array([1, 0, 0, 1])),
    )


@pytest.mark.parametrize(
    ("budget", "cost", "accuracy", "rates"),
    [
        (0.5, 1.0, 0.25, [1.0, 0.0]),
        (1.0, 1.0, 0.25, [1.0, 0.0]),
        (1.9, 1.0, 0.25, [1.0, 0.0]),
        (2.5, 2.0, 0.75, [0.5, 0.5]),
        (3.0, 3.0, 1.0, [0.0, 1.0]),
        (9.0, 3.0, 1.0, [0.0, 1.0]),
    ],
)
def test_figures_are_those_worked_out_by_hand(
    budget: float, cost: float, accuracy: float, rates: list[float]
) -> None:
    assert evaluate(*by_hand(), [budget]) == [(budget, cost, accuracy, rates)]


def test_budgets_are_answered_in_their_order() -> None:
    results = evaluate(*by_hand(), [3.0, 1.0, 2.0])
    assert [(result.budget_ms, result.cost_ms) for result in results] == [(3, 3), (1, 1), (2, 2)]


def test_costs_of_another_host_are_the_ones_counted() -> None:
    scheduler, predictions = by_hand()
    moved = scheduler._replace(frontier=scheduler.frontier.with_costs(np.array([2.0, 10.0])))
    results = evaluate(moved, predictions, [5.0, 6.0])
    assert [result.cost_ms for result in results] == [2.0, 6.0]


def test_spread_budgets_lie_evenly_inside_the_costs() -> None:
    assert spread_budgets(np.array([1.0, 2.0, 5.0]), 3) == [2.0, 3.0, 4.0]
    assert len(spread_budgets(np.array([1.0, 2.0]))) == 7
