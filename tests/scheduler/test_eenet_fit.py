from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scheduler.eenet import EENetPolicy
from scheduler.eenet_fit import fit_eenet
from scheduler.maxprob_fit import fit_maxprob
from scheduler.policy import score_all
from scheduler.scheduler import Scheduler
from scheduler.thresholds import route

SMALL = {"rounds": 2, "restarts": 1, "num_budgets": 6}

Problem = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]


@pytest.fixture(scope="module")
def problem(make_problem: Callable[..., Problem]) -> Problem:
    return make_problem()


@pytest.fixture(scope="module")
def fitted(problem: Problem) -> Scheduler:
    return fit_eenet(*problem, **SMALL)


def weights_of(scheduler: Scheduler) -> tuple[NDArray[np.float64], ...]:
    assert isinstance(scheduler.policy, EENetPolicy)
    return scheduler.policy.scorer.weights


def assert_sound(scheduler: Scheduler, problem: Problem) -> None:
    """No NaN anywhere, and every budget of the grid kept by the scores as served."""
    log_probs, _, costs = problem
    policy, frontier = scheduler
    scores = score_all(policy, log_probs)
    assert np.isfinite(scores).all()
    assert np.isfinite(frontier.expected_accuracy).all()
    for budget in frontier.parameters:
        thresholds = policy.thresholds(budget)
        assert not np.isnan(thresholds).any()
        assert costs[route(scores, thresholds)].mean() <= budget * (1 + 1e-12)


def test_every_budget_is_kept_on_the_calibration_rows(fitted: Scheduler, problem: Problem) -> None:
    assert_sound(fitted, problem)


def test_budgets_without_ties_are_spent(fitted: Scheduler) -> None:
    frontier = fitted.frontier
    assert (frontier.expected_costs_ms >= 0.99 * frontier.parameters).all()


def test_expectations_are_what_routing_gives(fitted: Scheduler, problem: Problem) -> None:
    log_probs, labels, _ = problem
    scores = score_all(fitted.policy, log_probs)
    correct = (log_probs.argmax(-1) == labels).T
    for point in (fitted.frontier.at_cost(cost) for cost in (1.0, 1.05, 1.2, 1.3)):
        exits = route(scores, fitted.policy.thresholds(point.parameter))
        assert np.bincount(exits, minlength=3) / len(exits) == pytest.approx(point.exit_rates)
        assert correct[np.arange(len(exits)), exits].mean() == point.expected_accuracy


def test_accuracy_is_at_least_that_of_max_probability(fitted: Scheduler, problem: Problem) -> None:
    rival = fit_maxprob(*problem).frontier
    for budget in (1.04, 1.08, 1.13, 1.18, 1.25):
        ours = fitted.frontier.at_cost(budget).expected_accuracy
        assert ours >= rival.at_cost(budget).expected_accuracy - 0.01


def test_scores_learn_what_max_probability_cannot_see() -> None:
    """The first exit is always wrong where it answers 0, however sure it is of it."""
    rng = np.random.default_rng(0)
    rows = 800
    answers, sure = rng.integers(0, 2, rows), rng.uniform(0.6, 0.99, rows)
    first = np.where(np.arange(2) == answers[:, None], sure[:, None], 1 - sure[:, None])
    labels = np.where(answers == 0, 1, np.where(rng.uniform(size=rows) < 0.95, 1, 0))
    last = np.where(np.arange(2) == labels[:, None], 0.99, 0.01)
    problem = np.log(np.stack([first, last])), labels, np.array([1.0, 1.3])
    fitted = fit_eenet(*problem, **(SMALL | {"rounds": 6}))
    rival = fit_maxprob(*problem)
    accuracies = [s.frontier.at_cost(1.15).expected_accuracy for s in (fitted, rival)]
    assert accuracies[0] > accuracies[1] + 0.1


def test_same_seed_gives_the_same_result_whatever_torch_drew_before(problem: Problem) -> None:
    torch.manual_seed(1)
    once = fit_eenet(*problem, seed=3, rounds=1, restarts=1, num_budgets=3)
    torch.manual_seed(2)
    again = fit_eenet(*problem, seed=3, rounds=1, restarts=1, num_budgets=3)
    for a, b in zip(weights_of(once), weights_of(again), strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(once.frontier.exit_rates, again.frontier.exit_rates)


def tiny(**overrides: Any) -> dict[str, Any]:
    return {"rounds": 1, "restarts": 1, "num_budgets": 3} | overrides


def test_probabilities_of_exactly_zero_and_one_give_no_nan(
    make_problem: Callable[..., Problem],
) -> None:
    log_probs, labels, costs = make_problem(rows=200)
    certain = np.full(log_probs.shape, -np.inf)
    np.put_along_axis(certain, log_probs.argmax(-1)[..., None], 0.0, -1)
    mixed = np.where(np.arange(200)[:, None] % 2 == 0, certain, log_probs)
    for rows in (certain, mixed):
        assert_sound(fit_eenet(rows, labels, costs, **tiny()), (rows, labels, costs))


@pytest.mark.parametrize("shift", [0, 1], ids=["all right", "all wrong"])
def test_exits_that_always_agree_with_each_other_on_success_fit(
    make_problem: Callable[..., Problem], shift: int
) -> None:
    log_probs, _, costs = make_problem(rows=200)
    log_probs = np.stack([log_probs[0]] * 3)
    labels = (log_probs[0].argmax(-1) + shift) % log_probs.shape[-1]
    fitted = fit_eenet(log_probs, labels, costs, **tiny())
    assert_sound(fitted, (log_probs, labels, costs))
    assert set(fitted.frontier.expected_accuracy) == {1.0 - shift}


def test_half_precision_records_fit(make_problem: Callable[..., Problem]) -> None:
    log_probs, labels, costs = make_problem(rows=200)
    halves = log_probs.astype(np.float16)
    assert_sound(fit_eenet(halves, labels, costs, **tiny()), (halves, labels, costs))


def test_without_the_vote_its_weight_stays_where_it_started(
    make_problem: Callable[..., Problem],
) -> None:
    # Right only at first, and only if sure of class 0: the kept weights must be learned ones.
    log_probs, labels, costs = make_problem(rows=400)
    labels = np.where(log_probs[0].argmax(-1) == 0, 0, labels)
    with_vote, without = (
        fit_eenet(log_probs, labels, costs, **SMALL, use_vote=use_vote)
        for use_vote in (True, False)
    )
    vote = log_probs.shape[-1] + 2
    assert any(psi[vote] != 0 for psi in weights_of(with_vote))
    assert all(psi[vote] == 0 for psi in weights_of(without))
    assert any(psi[0] != 0 for psi in weights_of(without))
