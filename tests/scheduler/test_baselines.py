import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.baselines import MaxProbPolicy, geometric_distribution
from scheduler.policy import score_all
from scheduler.thresholds import ThresholdTable


def policy() -> MaxProbPolicy:
    thresholds = np.array([[-np.inf, -np.inf], [0.8, -np.inf], [np.inf, -np.inf]])
    return MaxProbPolicy(ThresholdTable(np.array([1.0, 2.0, 3.0]), thresholds))


@given(
    st.lists(st.floats(0.05, 5.0), min_size=2, max_size=6),
    st.floats(0.01, 0.99),
)
def test_geometric_distribution_costs_the_budget_and_is_geometric(
    gaps: list[float], share: float
) -> None:
    costs = np.cumsum(gaps)
    budget = costs[0] + share * (costs[-1] - costs[0])
    distribution = geometric_distribution(costs, budget)
    assert distribution.sum() == pytest.approx(1)
    assert distribution @ costs == pytest.approx(budget, rel=1e-9)
    squared, outer = distribution[1:-1] ** 2, distribution[:-2] * distribution[2:]
    assert squared == pytest.approx(outer, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("budget", "taken"), [(0.5, 0), (1.0, 0), (4.0, 2), (99.0, 2)])
def test_geometric_distribution_is_all_at_one_end_outside_the_costs(
    budget: float, taken: int
) -> None:
    distribution = geometric_distribution(np.array([1.0, 2.0, 4.0]), budget)
    assert distribution.tolist() == np.eye(3)[taken].tolist()


def test_score_is_the_largest_class_probability_at_every_exit() -> None:
    log_probs = np.log([[[0.9, 0.1], [0.3, 0.7]], [[0.5, 0.5], [0.0001, 0.9999]]])
    assert score_all(policy(), log_probs) == pytest.approx(np.array([[0.9, 0.5], [0.7, 0.9999]]))


def test_rows_of_one_batch_leave_by_their_own_budgets() -> None:
    scores = np.array([0.1, 0.8, 0.79, 1.0])
    decision = policy().decide(0, scores, np.array([1.0, 2.0, 2.0, 3.0]))
    assert decision.leave.tolist() == [True, True, False, False]


def test_policy_tells_its_size_and_thresholds() -> None:
    assert policy().num_exits == 2
    assert policy().thresholds(2.7).tolist() == [0.8, -np.inf]
    assert policy().start(3).shape[0] == 3
