import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.baselines import ConfidencePolicy
from scheduler.policy import ExitScores
from scheduler.thresholds import (
    ThresholdTable,
    quantile_thresholds,
    repaired_thresholds,
    route,
    tabulate,
    tilt,
)

Array = NDArray[np.float64]


@st.composite
def cost_rows(draw: st.DrawFn) -> Array:
    """Rising costs (K,) of 2 to 5 exits, the last at most about ten times the first."""
    gaps = draw(st.lists(st.floats(0.05, 3.0), min_size=1, max_size=4))
    return np.cumsum([draw(st.floats(0.5, 2.0)), *gaps])


@st.composite
def distributions(draw: st.DrawFn, num_exits: int, least: float = 0.0) -> Array:
    parts = st.floats(least, 1.0)
    weights = np.array(draw(st.lists(parts, min_size=num_exits, max_size=num_exits)))
    assume(weights.sum() > 0.1)
    return weights / weights.sum()


def continuous_scores(rows: int, num_exits: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, num_exits))


def counts(exits: NDArray[np.intp], num_exits: int) -> list[int]:
    return np.bincount(exits, minlength=num_exits).tolist()


# quantile_thresholds and route


def test_thresholds_are_the_scores_of_the_last_rows_that_leave() -> None:
    scores = np.array([[0.9, 0.0], [0.8, 0.0], [0.7, 0.0], [0.6, 0.0]])
    thresholds = quantile_thresholds(scores, np.array([0.5, 0.5]))
    assert thresholds.tolist() == [0.8, -np.inf]
    assert route(scores, thresholds).tolist() == [0, 0, 1, 1]


def test_later_thresholds_look_only_at_rows_that_stayed() -> None:
    scores = np.array([[9, 9], [8, 8], [1, 3], [0, 2]], float)
    thresholds = quantile_thresholds(np.c_[scores, np.zeros(4)], np.array([0.5, 0.25, 0.25]))
    assert thresholds.tolist() == [8, 3, -np.inf]


@given(st.data(), st.integers(2, 5), st.integers(1, 400), st.integers(0, 99))
def test_without_ties_the_wanted_share_leaves_at_each_exit(
    data: st.DataObject, num_exits: int, rows: int, seed: int
) -> None:
    distribution = data.draw(distributions(num_exits))
    scores = continuous_scores(rows, num_exits, seed)
    exits = route(scores, quantile_thresholds(scores, distribution))
    taken = np.array(counts(exits, num_exits))
    # Half a row at either end of an exit's stretch of the running total.
    assert np.abs(taken - rows * distribution).max() <= 1 + 1e-6
    assert np.abs(np.cumsum(taken) - rows * np.cumsum(distribution)).max() <= 0.5 + 1e-6


@given(st.permutations([0, 10, 20, 30, 40]), st.integers(0, 99))
def test_shares_of_whole_rows_are_met_exactly(wanted: list[int], seed: int) -> None:
    scores = continuous_scores(100, 5, seed)
    exits = route(scores, quantile_thresholds(scores, np.array(wanted) / 100))
    assert counts(exits, 5) == wanted


def test_an_exit_that_nobody_is_to_take_never_fires() -> None:
    scores = continuous_scores(50, 3, 0)
    thresholds = quantile_thresholds(scores, np.array([0.0, 0.5, 0.5]))
    assert thresholds[0] == np.inf
    assert counts(route(scores, thresholds), 3) == [0, 25, 25]


def test_an_exit_that_takes_all_who_are_left_takes_unseen_rows_too() -> None:
    thresholds = quantile_thresholds(continuous_scores(50, 3, 0), np.array([0.4, 0.6, 0.0]))
    assert thresholds[1:].tolist() == [-np.inf, -np.inf]
    assert route(np.array([[-9.0, -9.0, -9.0]]), thresholds).tolist() == [1]


def test_ties_at_a_threshold_leave_together() -> None:
    scores = np.c_[[1.0, 1.0, 1.0, 0.0], np.zeros(4)]
    thresholds = quantile_thresholds(scores, np.array([0.25, 0.75]))
    assert counts(route(scores, thresholds), 2) == [3, 1]


def test_ties_leave_fewer_rows_for_later_exits_without_an_error() -> None:
    scores = np.c_[np.ones(10), np.arange(10.0), np.zeros(10)]
    thresholds = quantile_thresholds(scores, np.array([0.1, 0.5, 0.4]))
    assert counts(route(scores, thresholds), 3) == [10, 0, 0]


def test_rows_leave_at_the_first_exit_whose_threshold_they_reach() -> None:
    scores = np.array([[0.5, 0.9, 0.1], [0.4, 0.7, 0.1], [0.4, 0.6, -5.0]])
    assert route(scores, np.array([0.5, 0.7, -np.inf])).tolist() == [0, 1, 2]


# tilt


@given(st.data(), cost_rows(), st.floats(0.02, 0.98))
def test_tilt_costs_exactly_the_budget(data: st.DataObject, costs: Array, share: float) -> None:
    distribution = data.draw(distributions(len(costs), least=1e-4))
    budget = costs[0] + share * (costs[-1] - costs[0])
    tilted = tilt(distribution, costs, budget)
    assert tilted.sum() == pytest.approx(1)
    assert tilted @ costs == pytest.approx(budget, rel=1e-9)


def test_tilt_changes_log_odds_in_proportion_to_cost() -> None:
    distribution, costs = np.array([0.2, 0.3, 0.5]), np.array([1.0, 2.0, 4.0])
    change = np.log(tilt(distribution, costs, 1.7) / distribution)
    assert (change[2] - change[1]) / (change[1] - change[0]) == pytest.approx(2)


def test_tilt_leaves_a_distribution_that_costs_the_budget_alone() -> None:
    distribution, costs = np.array([0.2, 0.3, 0.5]), np.array([1.0, 2.0, 4.0])
    assert tilt(distribution, costs, 2.8) == pytest.approx(distribution)


def test_tilt_gives_no_share_to_an_exit_that_had_none() -> None:
    tilted = tilt(np.array([0.0, 0.5, 0.5]), np.array([1.0, 2.0, 4.0]), 2.5)
    assert tilted == pytest.approx([0, 0.75, 0.25])


@pytest.mark.parametrize(("budget", "taken"), [(0.5, 0), (1.0, 0), (4.0, 2), (9.0, 2)])
def test_tilt_clamps_the_budget_to_the_range_of_costs(budget: float, taken: int) -> None:
    tilted = tilt(np.full(3, 1 / 3), np.array([1.0, 2.0, 4.0]), budget)
    assert tilted == pytest.approx(np.eye(3)[taken], abs=1e-9)


def test_tilt_keeps_a_distribution_that_is_all_at_one_exit() -> None:
    assert tilt(np.array([0.0, 1.0, 0.0]), np.array([1.0, 2.0, 4.0]), 3.0).tolist() == [0, 1, 0]


# repaired_thresholds


@settings(deadline=None, max_examples=60)
@given(st.data(), cost_rows(), st.integers(300, 2000), st.floats(0, 1), st.integers(0, 99))
def test_repair_spends_the_budget_and_no_more(
    data: st.DataObject, costs: Array, rows: int, share: float, seed: int
) -> None:
    distribution = data.draw(distributions(len(costs), least=1e-3))
    budget = float(min(costs[0] + share * (costs[-1] - costs[0]), costs[-1]))
    scores = continuous_scores(rows, len(costs), seed)
    thresholds = repaired_thresholds(scores, distribution, costs, budget)
    cost = costs[route(scores, thresholds)].mean()
    assert cost <= budget * (1 + 1e-12)
    # With few rows and dear stages, moving one row by one exit may be more than a hundredth.
    assert cost >= budget - max(0.01 * budget, np.diff(costs).max() / rows * (1 + 1e-6))


@settings(deadline=None, max_examples=60)
@given(st.data(), cost_rows(), st.floats(0, 1), st.integers(1, 5), st.integers(0, 99))
def test_repair_never_overspends_under_heavy_ties(
    data: st.DataObject, costs: Array, share: float, levels: int, seed: int
) -> None:
    distribution = data.draw(distributions(len(costs)))
    budget = float(min(costs[0] + share * (costs[-1] - costs[0]), costs[-1]))
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (300, len(costs))).astype(float)
    thresholds = repaired_thresholds(scores, distribution, costs, budget)
    assert costs[route(scores, thresholds)].mean() <= budget * (1 + 1e-12)


def test_repair_at_the_first_cost_lets_everyone_out_at_once() -> None:
    costs, scores = np.array([1.0, 2.0, 4.0]), continuous_scores(500, 3, 0)
    thresholds = repaired_thresholds(scores, np.full(3, 1 / 3), costs, 1.0)
    assert counts(route(scores, thresholds), 3) == [500, 0, 0]


# ThresholdTable and the policies on it


def table_of_three() -> ThresholdTable:
    thresholds = np.array([[-np.inf, -np.inf], [0.5, -np.inf], [np.inf, -np.inf]])
    return ThresholdTable(np.array([1.0, 2.0, 3.0]), thresholds)


def scored(scores: Array) -> ExitScores:
    nothing = np.empty((len(scores), 0))
    return ExitScores(scores, nothing, nothing)


def policy_of_three() -> ConfidencePolicy:
    return ConfidencePolicy(table_of_three(), "maxprob")


@pytest.mark.parametrize(
    ("parameter", "threshold"),
    [
        (-np.inf, -np.inf),
        (0.0, -np.inf),
        (1.0, -np.inf),
        (1.99, -np.inf),
        (2.0, 0.5),
        (2.5, 0.5),
        (3.0, np.inf),
        (99.0, np.inf),
        (np.inf, np.inf),
    ],
)
def test_table_gives_the_row_of_the_grid_point_below(parameter: float, threshold: float) -> None:
    assert policy_of_three().thresholds(parameter).tolist() == [
        threshold,
        -np.inf,
    ]


@given(
    st.lists(st.floats(0.1, 9.0), min_size=1, max_size=20, unique=True),
    st.lists(st.floats(-1, 11), min_size=1, max_size=20),
)
def test_table_lookup_is_the_last_row_not_above_the_parameter(
    grid: list[float], asked: list[float]
) -> None:
    parameters = np.sort(grid)
    table = ThresholdTable(parameters, np.c_[parameters, np.full(len(grid), -np.inf)])
    lowest = min(grid)
    expected = [max((p for p in grid if p <= a), default=lowest) for a in asked]
    assert table.at(np.array(asked))[:, 0].tolist() == expected
    assert [table.at(np.array(a))[0] for a in asked] == expected


def test_table_looks_up_whatever_shape_it_is_asked() -> None:
    assert table_of_three().at(np.array(2.0)).shape == (2,)
    assert table_of_three().at(np.full((4, 3), 2.0)).shape == (4, 3, 2)


def test_a_closed_table_lets_go_at_the_last_exit_only() -> None:
    table = ThresholdTable.closed(4)
    for parameter in (-np.inf, 0.0, np.inf):
        assert table.at(np.array(parameter)).tolist() == [np.inf, np.inf, np.inf, -np.inf]


def test_policy_decides_each_row_by_its_own_parameter() -> None:
    parameters = np.array([0.0, 1.0, 2.0, 3.0, np.inf])
    decision = policy_of_three().decide(0, scored(np.full(5, 0.5)), parameters)
    assert decision.leave.tolist() == [True, True, True, False, False]
    assert decision.thresholds.tolist() == [-np.inf, -np.inf, 0.5, np.inf, np.inf]


def test_one_parameter_serves_all_rows() -> None:
    rows = scored(np.array([0.4, 0.5, 0.6]))
    decision = policy_of_three().decide(0, rows, np.array([2.5]))
    assert decision.leave.tolist() == [False, True, True]


def test_everyone_leaves_at_the_last_exit_whatever_the_score() -> None:
    rows = scored(np.array([-1e9, 0.0, 1e9]))
    policy = policy_of_three()
    assert policy.decide(1, rows, np.array([1.0, 2.0, 3.0])).leave.all()


def test_policy_tells_its_exits_and_the_budget_at_which_all_run_on() -> None:
    policy = policy_of_three()
    assert (policy.num_exits, policy.never_exit_parameter) == (2, 3.0)
    assert policy.thresholds(policy.never_exit_parameter).tolist() == [np.inf, -np.inf]


# tabulate


COSTS = np.array([1.0, 2.0, 4.0])


def tabulated(scores: Array, points: int = 25) -> tuple[Array, ThresholdTable]:
    """Budgets (G,) over COSTS and the table of tilted equal shares at each of them."""
    budgets = np.linspace(1.0, 4.0, points)
    wanted = np.stack([tilt(np.full(3, 1 / 3), COSTS, budget) for budget in budgets])
    return budgets, tabulate(scores, COSTS, budgets, wanted)


def spent(scores: Array, table: ThresholdTable) -> Array:
    return np.array([COSTS[route(scores, row)].mean() for row in table.thresholds])


@pytest.mark.parametrize("levels", [None, 2, 20])
def test_tabulate_keeps_every_budget_whatever_ties_there_are(levels: int | None) -> None:
    scores = continuous_scores(300, 3, 0)
    if levels:
        scores = np.random.default_rng(0).integers(0, levels, (300, 3)).astype(float)
    budgets, table = tabulated(scores)
    assert np.array_equal(table.parameters, budgets)
    assert (spent(scores, table) <= budgets * (1 + 1e-12)).all()
    if levels is None:
        assert (spent(scores, table) >= 0.99 * budgets).all()


def test_tabulate_lets_all_go_at_the_smallest_budget_and_none_before_the_end_at_the_largest() -> (
    None
):
    scores = continuous_scores(300, 3, 0)
    _, table = tabulated(scores)
    assert counts(route(scores, table.thresholds[0]), 3) == [300, 0, 0]
    assert table.thresholds[-1].tolist() == [np.inf, np.inf, -np.inf]


def test_tabulate_sends_the_wanted_shares_where_they_cost_the_budget() -> None:
    scores = continuous_scores(100, 2, 0)
    budgets, wanted = np.array([1.0, 1.5, 2.0]), np.array([[1.0, 0], [0.5, 0.5], [0, 1.0]])
    table = tabulate(scores, np.array([1.0, 2.0]), budgets, wanted)
    taken = [counts(route(scores, row), 2) for row in table.thresholds]
    assert taken == [[100, 0], [50, 50], [0, 100]]


def test_budgets_may_be_spent_under_other_names() -> None:
    scores = continuous_scores(300, 3, 0)
    spendable, named = np.array([1.0, 1.5, 1.5, 1.5]), np.array([1.0, 1.5, 3.0, 4.0])
    wanted = np.stack([tilt(np.full(3, 1 / 3), COSTS, budget) for budget in spendable])
    table = tabulate(scores, COSTS, spendable, wanted, parameters=named)
    assert table.parameters.tolist() == named.tolist()
    assert (spent(scores, table)[:-1] <= 1.5).all()
