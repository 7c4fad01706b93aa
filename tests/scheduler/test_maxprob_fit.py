from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from scheduler.baselines import geometric_distribution
from scheduler.maxprob_fit import fit_maxprob
from scheduler.policy import score_all
from scheduler.thresholds import route

Problem = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]


def test_every_budget_is_kept_and_spent(make_problem: Callable[..., Problem]) -> None:
    log_probs, labels, costs = make_problem()
    policy, frontier = fit_maxprob(log_probs, labels, costs)
    scores = score_all(policy, log_probs)
    for budget in frontier.parameters:
        cost = costs[route(scores, policy.thresholds(budget))].mean()
        assert 0.99 * budget <= cost <= budget * (1 + 1e-12)


def test_rows_leave_in_geometric_shares(make_problem: Callable[..., Problem]) -> None:
    log_probs, labels, costs = make_problem()
    frontier = fit_maxprob(log_probs, labels, costs).frontier
    for budget in (1.04, 1.13, 1.25):
        point = frontier.at_cost(budget)
        wanted = geometric_distribution(costs, point.parameter)
        assert point.exit_rates == pytest.approx(wanted, abs=0.005)


def test_expected_accuracy_at_the_ends_is_that_of_the_end_exits(
    make_problem: Callable[..., Problem],
) -> None:
    log_probs, labels, costs = make_problem()
    frontier = fit_maxprob(log_probs, labels, costs).frontier
    right = (log_probs.argmax(-1) == labels).mean(1)
    assert frontier[0].expected_accuracy == right[0]
    assert frontier[-1].expected_accuracy == right[-1]


def test_equally_sure_rows_leave_only_the_two_ends(make_problem: Callable[..., Problem]) -> None:
    _, labels, costs = make_problem()
    tied = np.log(np.broadcast_to([0.6, 0.1, 0.1, 0.1, 0.1], (3, len(labels), 5)))
    frontier = fit_maxprob(tied, labels, costs).frontier
    # All rows move together, so that only whole exits can be had.
    assert frontier.expected_costs_ms.tolist() in ([1, 1.3], [1, 1.1, 1.3])
    assert (frontier.expected_costs_ms <= frontier.parameters * (1 + 1e-12)).all()
