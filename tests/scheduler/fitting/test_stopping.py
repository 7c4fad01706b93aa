import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from scheduler.fitting.stopping import (
    fit_stopping,
    logistic_regression,
    price_ladder,
)
from scheduler.fitting.thresholds import fit_confidence
from scheduler.frontier import GRID_STEP
from scheduler.policy import exits_taken, replay, score_all

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Problem = tuple[Array, Ints, Array]


def sigmoid(logits: Array) -> Array:
    return 1 / (1 + np.exp(-logits))


# Logistic regression


def inputs_and_weights(rows: int = 500, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return np.c_[np.ones(rows), rng.normal(size=(rows, 3))], np.array([0.3, 1.0, -2.0, 0.0])


@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_regression_agrees_with_scikit_learn(penalty: float) -> None:
    inputs, weights = inputs_and_weights()
    targets = np.random.default_rng(1).uniform(size=500) < sigmoid(inputs @ weights)
    ours = logistic_regression(inputs, targets.astype(float), np.array([1e-9] + [penalty] * 3))
    theirs = LogisticRegression(C=1 / penalty, tol=1e-10).fit(inputs[:, 1:], targets)
    assert ours == pytest.approx(np.r_[theirs.intercept_, theirs.coef_[0]], abs=1e-3)


def test_regression_recovers_the_weights_behind_fractional_targets() -> None:
    inputs, weights = inputs_and_weights()
    found = logistic_regression(inputs, sigmoid(inputs @ weights), np.full(4, 1e-6))
    assert found == pytest.approx(weights, abs=1e-3)


def test_a_penalty_draws_its_own_weight_to_zero_and_no_other() -> None:
    inputs, weights = inputs_and_weights()
    targets = sigmoid(inputs @ weights)
    found = logistic_regression(inputs, targets, np.array([1e-6, 1e6, 1e-6, 1e-6]))
    assert abs(found[1]) < 1e-3
    assert abs(found[2]) > 1


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_regression_of_targets_that_are_all_the_same_is_sure_of_them(target: float) -> None:
    inputs, _ = inputs_and_weights()
    found = logistic_regression(inputs, np.full(500, target), np.array([1e-2, 10, 10, 10]))
    assert np.isfinite(found).all()
    assert np.abs(sigmoid(inputs @ found) - target).max() < 0.01


def test_regression_of_separable_targets_is_finite_and_right() -> None:
    inputs, _ = inputs_and_weights()
    targets = (inputs[:, 1] > 0).astype(float)
    found = logistic_regression(inputs, targets, np.full(4, 1e-2))
    assert np.isfinite(found).all()
    assert ((sigmoid(inputs @ found) > 0.5) == targets).mean() > 0.99


@pytest.mark.parametrize("start", [np.zeros(4), np.full(4, 30.0), np.array([-50.0, 0, 50, 0])])
def test_regression_ends_at_the_same_weights_wherever_it_starts(start: Array) -> None:
    inputs, weights = inputs_and_weights()
    targets, penalty = sigmoid(inputs @ weights), np.full(4, 1.0)
    kept = start.copy()
    found = logistic_regression(inputs, targets, penalty, start)
    assert found == pytest.approx(logistic_regression(inputs, targets, penalty), abs=0.01)
    assert np.array_equal(start, kept)


# The fitted policy on problems of any kind


@pytest.fixture(scope="module")
def problem(make_problem: Callable[..., Problem]) -> Problem:
    return make_problem()


def value(problem: Problem, exits: Ints, price: float) -> float:
    """Share of right answers less the priced mean cost of the exits (N,) taken."""
    log_probs, labels, costs = problem
    answers = log_probs.argmax(-1)[exits, np.arange(len(labels))]
    return float((answers == labels).mean() - price * costs[exits].mean())


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 999), st.sampled_from([(1.0, 1.1, 1.3), (1.0, 2.0, 4.0), (1.0, 1.2, 5.0)]))
def test_the_cost_of_fresh_rows_never_rises_with_the_price(
    make_problem: Callable[..., Problem], seed: int, costs: tuple[float, ...]
) -> None:
    log_probs, labels, _ = make_problem(rows=200, seed=seed)
    costs_ms = np.array(costs)
    policy = fit_stopping(log_probs, labels, costs_ms)
    replayed = replay(policy, make_problem(rows=300, seed=seed + 1)[0])
    prices = np.linspace(policy.prices[-1], policy.never_exit_parameter / 20, 100)
    spent = [costs_ms[exits_taken(policy, replayed, price)].mean() for price in prices]
    assert (np.diff(spent) >= -1e-12).all()


def test_the_value_ahead_falls_as_the_price_rises(problem: Problem) -> None:
    policy = fit_stopping(*problem)
    for exit, scored in enumerate(replay(policy, problem[0])[:-1]):
        ahead = scored.continuation_values - policy.prices * policy.steps_ms[exit]
        # Independent regressions wobble where the value ahead hardly moves.
        assert np.diff(ahead, axis=1).max() < 1e-3


def test_prices_rise_from_zero_to_where_going_on_never_pays(problem: Problem) -> None:
    policy, costs = fit_stopping(*problem), problem[2]
    assert policy.prices[0] == 0
    assert (np.diff(policy.prices) > 0).all()
    assert policy.prices[-1] * np.diff(costs).min() >= 0.5 - 1e-12
    assert policy.steps_ms == pytest.approx(np.diff(costs))


def test_chances_are_calibrated(make_problem: Callable[..., Problem]) -> None:
    """On fresh rows, of those given a chance of about p about p are right."""
    policy = fit_stopping(*make_problem(rows=2000))
    log_probs, labels, _ = make_problem(rows=4000, seed=1)
    chances, right = score_all(policy, log_probs), (log_probs.argmax(-1) == labels).T
    for k in range(3):
        order = np.argsort(chances[:, k])
        for rows in np.array_split(order, 4):
            assert chances[rows, k].mean() == pytest.approx(right[rows, k].mean(), abs=0.06)


def test_prices_beat_thresholds_on_confidence_on_fresh_rows(
    make_problem: Callable[..., Problem],
) -> None:
    fresh, costs = make_problem(rows=4000, seed=1), make_problem()[2]
    policy = fit_stopping(*make_problem(rows=2000))
    rival = fit_confidence("maxprob", *make_problem(rows=2000))
    ours, theirs = replay(policy, fresh[0]), replay(rival, fresh[0])
    for price in (0.2, 0.6, 1.5):
        best = max(
            value(fresh, exits_taken(rival, theirs, budget), price)
            for budget in np.linspace(costs[0], costs[-1], 60)
        )
        assert value(fresh, exits_taken(policy, ours, price), price) > best - 0.002


def test_same_seed_gives_the_same_policy_and_another_other_folds(problem: Problem) -> None:
    once, again, other = (fit_stopping(*problem, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(once.weights, again.weights, strict=True))
    assert not np.array_equal(once.weights[0], other.weights[0])


@pytest.mark.parametrize("shift", [0, 1], ids=["all right", "all wrong"])
def test_exits_that_are_all_right_or_all_wrong_give_no_nan_and_let_go_at_once(
    make_problem: Callable[..., Problem], shift: int
) -> None:
    log_probs, _, costs = make_problem(rows=100)
    log_probs = np.stack([log_probs[0]] * 3)
    labels = (log_probs[0].argmax(-1) + shift) % 5
    policy = fit_stopping(log_probs, labels, costs)
    for scored in replay(policy, log_probs):
        assert np.isfinite(scored.scores).all()
        assert np.isfinite(scored.continuation_values).all()
    assert set(exits_taken(policy, replay(policy, log_probs), 0.5)) == {0}


def test_half_precision_records_fit_as_double_ones_do(problem: Problem) -> None:
    log_probs, labels, costs = problem
    halves = fit_stopping(log_probs.astype(np.float16), labels, costs)
    exits = [
        exits_taken(policy, replay(policy, log_probs), 0.5)
        for policy in (halves, fit_stopping(*problem))
    ]
    assert (exits[0] == exits[1]).mean() > 0.98


def test_an_exit_that_is_never_right_about_a_class_is_not_trusted_with_it() -> None:
    """The first exit is sure and wrong where it answers 0, sure and right where it answers 1."""
    rng = np.random.default_rng(0)
    answers = rng.integers(0, 2, 600)
    first = np.where(np.arange(2) == answers[:, None], 0.9, 0.1)
    last = np.tile([0.01, 0.99], (600, 1))
    log_probs, labels = np.log(np.stack([first, last])), np.ones(600, np.int64)
    policy = fit_stopping(log_probs, labels, np.array([1.0, 2.0]))
    exits = exits_taken(policy, replay(policy, log_probs), 0.3)
    assert np.array_equal(exits, np.where(answers == 0, 1, 0))


@pytest.mark.parametrize(("classes", "told_apart"), [(8, True), (9, False)])
def test_answers_are_told_apart_up_to_so_many_classes(
    make_problem: Callable[..., Problem],
    monkeypatch: pytest.MonkeyPatch,
    classes: int,
    told_apart: bool,
) -> None:
    monkeypatch.setattr("scheduler.fitting.stopping.MAX_CLASS_OFFSETS", 8)
    policy = fit_stopping(*make_problem(rows=100, classes=classes))
    assert all(offsets.shape[0] == classes for offsets in policy.class_offsets)
    assert any(offsets.any() for offsets in policy.class_offsets) == told_apart


# Prices for any budget


def test_the_ladder_of_prices_reaches_any_budget_from_below(problem: Problem) -> None:
    log_probs, _, costs = problem
    policy = fit_stopping(*problem)
    ladder, replayed = price_ladder(policy, log_probs, costs), replay(policy, log_probs)
    exits = [exits_taken(policy, replayed, price) for price in ladder]
    spent = np.array([costs[taken].mean() for taken in exits])
    assert (np.diff(ladder) < 0).all()
    assert (ladder[0], ladder[-1]) == (policy.exit_at_first_parameter, policy.never_exit_parameter)
    assert (spent[0], spent[-1]) == pytest.approx((costs[0], costs[-1]))
    assert (spent[1:] <= spent[:-1] * (1 + 1.01 * GRID_STEP)).all()


def test_the_ladder_is_fine_where_one_stage_is_far_shorter_than_another(
    make_problem: Callable[..., Problem],
) -> None:
    log_probs, labels, _ = make_problem(rows=2000)
    costs = np.array([1.0, 1.001, 5.0])
    policy = fit_stopping(log_probs, labels, costs)
    replayed = replay(policy, log_probs)
    ladder = price_ladder(policy, log_probs, costs)
    spent = np.array([costs[exits_taken(policy, replayed, price)].mean() for price in ladder])
    assert (np.diff(spent) <= 0.02 * spent[:-1]).all()


def test_the_ladder_of_rows_that_tie_ends(make_problem: Callable[..., Problem]) -> None:
    _, labels, costs = make_problem(rows=100)
    tied = np.log(np.broadcast_to([0.6, 0.1, 0.1, 0.1, 0.1], (3, 100, 5)))
    policy = fit_stopping(tied, labels, costs)
    ladder = price_ladder(policy, tied, costs)
    assert 2 <= len(ladder) <= 1000
    assert (np.diff(ladder) < 0).all()


# Problems with a known answer


def hopeless_problem(rows: int = 900, seed: int = 0) -> tuple[Problem, Ints]:
    """Rows at two exits and their kinds: 0 easy, 1 helped by the second exit, 2 hopeless.

    Easy ones are surest of their answer, hopeless ones least, and those never are right.
    """
    rng = np.random.default_rng(seed)
    kinds, labels = rng.integers(0, 3, rows), rng.integers(0, 2, rows)
    first = np.array([0.92, 0.7, 0.52])[kinds] + rng.uniform(0, 0.06, rows)
    last = np.array([0.95, 0.95, 0.55])[kinds] + rng.uniform(0, 0.04, rows)
    answers = np.where(np.stack([kinds == 0, kinds != 2]), labels, 1 - labels)
    sure = np.stack([first, last])
    probs = np.where(np.arange(2) == answers[..., None], sure[..., None], 1 - sure[..., None])
    return (np.log(probs), labels, np.array([1.0, 2.0])), kinds


def test_hopeless_rows_leave_early_as_no_threshold_on_confidence_lets_them() -> None:
    fitted_to, _ = hopeless_problem()
    fresh, kinds = hopeless_problem(seed=1)
    policy, rival = fit_stopping(*fitted_to), fit_confidence("maxprob-opt", *fitted_to)
    taken = exits_taken(policy, replay(policy, fresh[0]), 0.5)
    left = [(taken[kinds == kind] == 0).mean() for kind in range(3)]
    assert left[0] > 0.95
    assert left[1] < 0.05
    assert left[2] > 0.95
    budget = fresh[2][taken].mean()
    rivals = exits_taken(rival, replay(rival, fresh[0]), budget)
    # Those that a threshold keeps longest are the hopeless: a third of the rows is lost.
    assert value(fresh, taken, 0) > value(fresh, rivals, 0) + 0.25


RIGHT = np.array([[0.52, 0.65, 0.93], [0.53, 0.8, 0.95], [0.56, 0.97, 0.98]])  # by exit and state


def discrete_problem(rows: int, seed: int) -> tuple[Problem, Ints]:
    """Three exits, two classes, and what a row shows before the last exit, in numbers (N, 2).

    Each exit shows an answer and one of three states, from which its calibrated confidence follows;
    the last has the state of the second. So rows come to the first exit in 6 ways, to the second
    in 36. The first state is hopeless: hardly better than guessing at any exit.
    """
    rng = np.random.default_rng(seed)
    labels, first = rng.integers(0, 2, rows), rng.integers(0, 3, rows)
    second = np.where(rng.uniform(size=rows) < 0.8, first, rng.integers(0, 3, rows))
    sure = np.stack([RIGHT[0, first], RIGHT[1, second], RIGHT[2, second]])
    answers = np.where(rng.uniform(size=sure.shape) < sure, labels, 1 - labels)
    probs = np.where(np.arange(2) == answers[..., None], sure[..., None], 1 - sure[..., None])
    ways = 2 * first + answers[0]
    histories = 6 * ways + 2 * second + answers[1]
    return (np.log(probs), labels, np.array([1.0, 1.5, 2.5])), np.stack([ways, histories], 1)


def best_value_of_any_rule(problem: Problem, history: Ints, price: float) -> float:
    """The most that right answers less priced cost can be, over all rules of the first two exits.

    A rule says which ways leave at the first exit and which histories at the second: all choices
    of the first are tried, each with the best of the second, history by history.
    """
    log_probs, labels, costs = problem
    gains = (log_probs.argmax(-1) == labels) - price * costs[:, None]  # (3, N)
    best = -np.inf
    ways = history[:, 0].max() + 1
    later = np.stack([np.bincount(history[:, 1], gains[k]) for k in (1, 2)]).max(0)
    now, then = np.bincount(history[:, 0], gains[0]), later.reshape(ways, -1).sum(1)
    for leave in itertools.product([False, True], repeat=ways):
        best = max(best, np.where(leave, now, then).sum() / len(labels))
    return best


@pytest.mark.slow
def test_the_policy_is_worth_nearly_as_much_as_the_best_of_all_rules() -> None:
    """Within 0.005 of right answers less priced cost, at every price; thresholds miss by more."""
    problem, history = discrete_problem(6000, 0)
    policy, rival = fit_stopping(*problem), fit_confidence("maxprob-opt", *problem)
    replayed, rivals = replay(policy, problem[0]), replay(rival, problem[0])
    budgets = rival.table.parameters[::10].tolist()
    rival_exits = [exits_taken(rival, rivals, budget) for budget in budgets]
    missed = []
    for price in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        best = best_value_of_any_rule(problem, history, price)
        ours = value(problem, exits_taken(policy, replayed, price), price)
        assert best - 0.005 <= ours <= best + 1e-12
        missed.append(best - max(value(problem, exits, price) for exits in rival_exits))
    assert max(missed) > 0.02
