from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.fitting.thresholds import (
    fit_confidence,
    fit_patience,
    geometric_distribution,
    geometric_table,
    optimised_table,
)
from scheduler.frontier import budget_grid
from scheduler.policy import score_all
from scheduler.thresholds import ThresholdPolicy, ThresholdTable, route

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Problem = tuple[Array, NDArray[np.int64], Array]


def spent(scores: Array, table: ThresholdTable, costs: Array) -> Array:
    """Mean cost at every budget of the table, (G,)."""
    return np.array([costs[route(scores, row)].mean() for row in table.thresholds])


def accuracy(scores: Array, correct: Bools, table: ThresholdTable) -> Array:
    """Share of right answers at every budget of the table, (G,)."""
    rows = np.arange(len(scores))
    return np.array([correct[rows, route(scores, row)].mean() for row in table.thresholds])


def noisy_confidence(rows: int, seed: int, exits: int = 3) -> tuple[Array, Bools]:
    """Scores (N, K) that say something of who is right, and who is, (N, K)."""
    rng = np.random.default_rng(seed)
    easiness = rng.normal(size=(rows, 1))
    scores = easiness + 0.7 * rng.normal(size=(rows, exits))
    correct = rng.normal(size=(rows, exits)) < easiness + np.linspace(0, 1.5, exits)
    return scores, correct


def fit(kind: str, problem: Problem) -> ThresholdPolicy:
    log_probs, labels, costs = problem
    if kind == "patience":
        return fit_patience(log_probs, costs)
    return fit_confidence(kind, log_probs, labels, costs)


# From geometric exit distributions


@pytest.mark.parametrize("kind", ["maxprob", "entropy", "patience"])
def test_every_budget_is_kept_and_spent(make_problem: Callable[..., Problem], kind: str) -> None:
    problem = make_problem()
    policy = fit(kind, problem)
    log_probs, _, costs = problem
    realised = spent(score_all(policy, log_probs), policy.table, costs)
    assert policy.kind == kind
    assert np.array_equal(policy.table.parameters, budget_grid(costs))
    assert (realised <= policy.table.parameters * (1 + 1e-12)).all()
    assert (realised >= 0.99 * policy.table.parameters).all()


@pytest.mark.parametrize("kind", ["maxprob", "entropy", "patience"])
def test_rows_leave_in_geometric_shares(make_problem: Callable[..., Problem], kind: str) -> None:
    problem = make_problem()
    policy, costs = fit(kind, problem), problem[2]
    scores = score_all(policy, problem[0])
    for budget in policy.table.parameters[[20, 45, 70]]:
        exits = route(scores, policy.thresholds(budget))
        wanted = geometric_distribution(costs, budget)
        assert np.bincount(exits, minlength=3) / len(exits) == pytest.approx(wanted, abs=0.005)


def test_equally_sure_rows_leave_only_the_two_ends(make_problem: Callable[..., Problem]) -> None:
    _, labels, costs = make_problem()
    tied = np.log(np.broadcast_to([0.6, 0.1, 0.1, 0.1, 0.1], (3, len(labels), 5)))
    policy = fit_confidence("maxprob", tied, labels, costs)
    realised = spent(score_all(policy, tied), policy.table, costs)
    # All rows move together, so that only whole exits can be had.
    assert set(realised.round(9)) <= {1.0, 1.1, 1.3}
    assert (realised <= policy.table.parameters * (1 + 1e-12)).all()


def test_labels_do_not_move_geometric_thresholds(make_problem: Callable[..., Problem]) -> None:
    log_probs, labels, costs = make_problem(rows=100)
    one, other = (fit_confidence("maxprob", log_probs, y, costs) for y in (labels, labels[::-1]))
    assert np.array_equal(one.table.thresholds, other.table.thresholds)


# Optimised for accuracy


@pytest.mark.parametrize("kind", ["maxprob-opt", "entropy-opt"])
def test_optimised_thresholds_keep_every_budget(
    make_problem: Callable[..., Problem], kind: str
) -> None:
    problem = make_problem()
    policy = fit(kind, problem)
    log_probs, _, costs = problem
    realised = spent(score_all(policy, log_probs), policy.table, costs)
    assert policy.kind == kind
    assert np.array_equal(policy.table.parameters, budget_grid(costs))
    assert (realised <= policy.table.parameters * (1 + 1e-12)).all()


@pytest.mark.parametrize("kind", ["maxprob", "entropy"])
def test_optimised_thresholds_score_as_the_plain_ones_do(
    make_problem: Callable[..., Problem], kind: str
) -> None:
    problem = make_problem(rows=100)
    plain, optimised = fit(kind, problem), fit(f"{kind}-opt", problem)
    assert np.array_equal(score_all(plain, problem[0]), score_all(optimised, problem[0]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("costs", [(1.0, 1.1, 1.3), (1.0, 1.2, 1.25)])
def test_optimised_thresholds_are_right_at_least_as_often_as_geometric_ones(
    seed: int, costs: tuple[float, ...]
) -> None:
    costs_ms = np.array(costs)
    scores, correct = noisy_confidence(4000, seed)
    plain = accuracy(scores, correct, geometric_table(scores, costs_ms))
    optimised = accuracy(scores, correct, optimised_table(scores, correct, costs_ms))
    # Between two points of the hull shares are interpolated, which may lose a few rows.
    assert (optimised >= plain - 0.001).all()
    assert (optimised - plain).max() > 0.01


def test_optimised_thresholds_do_not_spend_what_accuracy_does_not_profit_from() -> None:
    scores, _ = noisy_confidence(500, 0)
    right = np.tile(np.random.default_rng(0).uniform(size=(500, 1)) < 0.7, (1, 3))
    right[:100, 0] = False  # a fifth of the rows is helped by the second exit, none by the third
    scores[:100, 0] -= 10
    costs = np.array([1.0, 1.1, 1.3])
    table = optimised_table(scores, right, costs)
    # At the largest budget all run to the end, as the table of any policy has it.
    assert spent(scores, table, costs)[:-1].max() <= 1.0 + 0.2 * 0.1 + 1e-9


def every_budget(costs: Array, rows: int) -> Array:
    """All mean costs of rows that take one of two exits, and a little for rounding, (N + 1,)."""
    return (costs[0] + (costs[1] - costs[0]) * np.arange(rows + 1) / rows) * (1 + 1e-12)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 12), st.integers(0, 999), st.sampled_from([None, 2, 4]))
def test_two_exits_are_split_as_well_as_by_trying_every_threshold(
    rows: int, seed: int, levels: int | None
) -> None:
    """At every price that the fit looks at, some budget buys the most that can be had."""
    scores, correct = noisy_confidence(rows, seed, exits=2)
    if levels:
        scores = np.floor(scores * levels / 4)
    costs = np.array([1.0, 1.5])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "scheduler.fitting.thresholds.budget_grid", lambda _: every_budget(costs, rows)
        )
        table = optimised_table(scores, correct, costs)
    thresholds = [*table.thresholds, *([t, -np.inf] for t in [*scores[:, 0], np.inf])]
    exits = np.stack([route(scores, np.array(row)) for row in thresholds])
    right = correct[np.arange(rows), exits].mean(1)
    for price in np.r_[np.geomspace(2, 2e-4, 40), 0.0]:
        worth = right - price * costs[exits].mean(1)
        ours = worth[: len(table.thresholds)].max()
        assert ours == pytest.approx(worth.max(), abs=1e-9)


def test_three_exits_are_split_nearly_as_well_as_by_trying_every_pair_of_thresholds() -> None:
    """Within one row of 30 at every budget, where moving one threshold at a time may be stuck."""
    costs, rows = np.array([1.0, 1.1, 1.3]), 30
    scores, correct = noisy_confidence(rows, 5)
    table = optimised_table(scores, correct, costs)
    tried = [
        route(scores, np.array([first, second, -np.inf]))
        for first in [*scores[:, 0], -np.inf, np.inf]
        for second in [*scores[:, 1], -np.inf, np.inf]
    ]
    prices = np.geomspace(10, 1e-3, 40)
    worth = [
        np.array([correct[np.arange(rows), e].mean() - prices * costs[e].mean() for e in exits])
        for exits in (tried, [route(scores, row) for row in table.thresholds])
    ]
    best, ours = (each.max(0) for each in worth)
    assert (ours >= best - 1 / rows - 1e-9).all()
    assert np.median(best - ours) < 0.3 / rows


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
