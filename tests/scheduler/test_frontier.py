from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.frontier import Frontier, budget_grid
from scheduler.thresholds import ThresholdTable, route, tabulate, tilt

Array = NDArray[np.float64]


@lru_cache
def fitted(levels: int | None = None) -> tuple[Array, NDArray[np.bool_], ThresholdTable, Frontier]:
    """Scores (N, 3), correctness (N, 3), thresholds and their frontier at costs 1, 2, 4.

    With `levels`, the scores have only so many values.
    """
    rng = np.random.default_rng(0)
    costs = np.array([1.0, 2.0, 4.0])
    scores = rng.normal(size=(300, 3))
    if levels:
        scores = rng.integers(0, levels, (300, 3)).astype(float)
    correct = rng.uniform(size=(300, 3)) < [0.6, 0.75, 0.9]
    grid = np.linspace(1.0, 4.0, 25)
    wanted = np.stack([tilt(np.full(3, 1 / 3), costs, budget) for budget in grid])
    table = tabulate(scores, costs, grid, wanted)
    exits = np.stack([route(scores, row) for row in table.thresholds])
    rates = np.stack([(exits == k).mean(1) for k in range(3)], 1)
    accuracy = correct[np.arange(300), exits].mean(1)
    return scores, correct, table, Frontier(grid, rates, accuracy, costs).pareto()


new_costs = st.lists(st.floats(0.05, 5.0), min_size=3, max_size=3).map(np.cumsum)


def hand_made() -> Frontier:
    return Frontier(
        parameters=np.array([1.0, 2.0, 3.0]),
        exit_rates=np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]),
        expected_accuracy=np.array([0.6, 0.8, 0.9]),
        costs_ms=np.array([1.0, 3.0]),
    )


def by_price() -> Frontier:
    """The same curve bought by a price: 0.5, 0.2 and -1."""
    curve = hand_made()
    return Frontier(
        np.array([0.5, 0.2, -1.0]), curve.exit_rates, curve.expected_accuracy, curve.costs_ms
    )


def test_points_are_read_by_index() -> None:
    point = hand_made()[1]
    assert point[:3] == (2.0, 2.0, 0.8)
    assert point.exit_rates.tolist() == [0.5, 0.5]
    assert len(hand_made()) == 3


@pytest.mark.parametrize(
    ("cost", "place"), [(-1, 0), (0.5, 0), (1, 0), (1.9, 0), (2, 1), (2.9, 1), (3, 2), (9, 2)]
)
def test_at_cost_takes_the_dearest_point_within_it(cost: float, place: int) -> None:
    for curve in (hand_made(), by_price()):
        assert curve.at_cost(cost).parameter == curve.parameters[place]


@pytest.mark.parametrize(
    ("asked", "parameter"), [(0, 1), (1, 1), (2.5, 2), (3, 3), (np.inf, 3), (-np.inf, 1)]
)
def test_at_parameter_takes_the_last_budget_not_above_it(asked: float, parameter: float) -> None:
    assert hand_made().at_parameter(asked).parameter == parameter


@pytest.mark.parametrize(
    ("asked", "parameter"),
    [(9, 0.5), (0.5, 0.5), (0.3, 0.5), (0.2, 0.2), (0, 0.2), (-1, -1), (-np.inf, -1)],
)
def test_at_parameter_takes_the_last_price_not_below_it(asked: float, parameter: float) -> None:
    assert by_price().at_parameter(asked).parameter == parameter


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([None, 3, 20]), st.floats(0.0, 6.0))
def test_at_cost_never_costs_more_than_asked(levels: int | None, asked: float) -> None:
    frontier = fitted(levels)[-1]
    point = frontier.at_cost(asked)
    if asked < 1.0:
        assert point.expected_cost_ms == 1.0
    else:
        assert point.expected_cost_ms <= asked * (1 + 1e-8)
        within = frontier.expected_costs_ms[frontier.expected_costs_ms <= asked]
        assert point.expected_cost_ms >= within.max()


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([None, 3, 20]), new_costs)
def test_other_costs_give_what_routing_again_at_them_gives(
    levels: int | None, costs: Array
) -> None:
    scores, correct, table, frontier = fitted(levels)
    moved = frontier.with_costs(costs)
    assert (np.diff(moved.expected_costs_ms) > 0).all()
    for index in range(len(moved)):
        point = moved[index]
        exits = route(scores, table.at(np.array(point.parameter)))
        assert costs[exits].mean() == pytest.approx(point.expected_cost_ms)
        assert correct[np.arange(300), exits].mean() == point.expected_accuracy


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([None, 3]), new_costs)
def test_the_ends_are_all_at_the_first_and_all_at_the_last_exit(
    levels: int | None, costs: Array
) -> None:
    frontier = fitted(levels)[-1]
    for curve in (frontier, frontier.with_costs(costs)):
        assert curve[0].exit_rates.tolist() == [1, 0, 0]
        assert curve[-1].exit_rates.tolist() == [0, 0, 1]


def test_the_same_costs_change_nothing() -> None:
    frontier = fitted()[-1]
    again = frontier.with_costs(frontier.costs_ms)
    assert np.array_equal(again.parameters, frontier.parameters)
    assert np.array_equal(again.exit_rates, frontier.exit_rates)


def test_points_that_cost_no_more_than_an_earlier_one_are_dropped() -> None:
    frontier = Frontier(
        parameters=np.array([1.0, 2.0, 3.0, 4.0, 5.0]),
        exit_rates=np.array([[1, 0, 0], [0.5, 0, 0.5], [0.2, 0.8, 0], [0, 0.8, 0.2], [0, 0, 1.0]]),
        expected_accuracy=np.array([0.5, 0.6, 0.7, 0.75, 0.8]),
        costs_ms=np.array([1.0, 3.0, 4.0]),
    )
    # The second point costs 5.5 here, the third 1.8 and the fourth 3.6.
    moved = frontier.with_costs(np.array([1.0, 2.0, 10.0]))
    assert moved.parameters.tolist() == [1, 2, 5]
    assert moved.expected_costs_ms == pytest.approx([1, 5.5, 10])
    assert moved.expected_accuracy.tolist() == [0.5, 0.6, 0.8]


def test_of_points_that_cost_the_same_the_first_is_kept() -> None:
    twice = Frontier(
        parameters=np.array([3.0, 2.0, 1.0]),
        exit_rates=np.array([[1.0, 0], [1.0, 0], [0, 1.0]]),
        expected_accuracy=np.array([0.5, 0.6, 0.9]),
        costs_ms=np.array([1.0, 3.0]),
    ).pareto()
    assert twice.parameters.tolist() == [3, 1]
    assert twice.expected_accuracy.tolist() == [0.5, 0.9]


def test_the_point_that_runs_all_to_the_end_for_sure_stays_in_place_of_one_as_dear() -> None:
    surely = Frontier(
        parameters=np.array([1.0, 2.0, 3.0]),
        exit_rates=np.array([[1.0, 0], [0, 1.0], [0, 1.0]]),
        expected_accuracy=np.array([0.5, 0.8, 0.9]),
        costs_ms=np.array([1.0, 3.0]),
    ).pareto()
    assert surely.parameters.tolist() == [1, 3]
    assert surely.expected_accuracy.tolist() == [0.5, 0.9]


def test_a_frontier_of_arrays_that_disagree_is_refused() -> None:
    curve = hand_made()
    for points, exits in ((2, 2), (3, 3)):
        with pytest.raises(ValueError, match="the numbers of parameters"):
            Frontier(
                curve.parameters, np.ones((points, exits)), curve.expected_accuracy, curve.costs_ms
            )


@pytest.mark.parametrize(
    ("costs", "moved"),
    [
        ([1.0, 2.0, 4.0], []),
        ([10.0, 20.0, 40.0], []),
        # Shares of 0.25, 0.25 and 0.5 become 0.3125, 0.25 and 0.4375: the first by a quarter.
        ([1.25, 2.25, 4.0], [0]),
        ([0.6, 2.0, 4.0], [0, 1]),
        ([1.0, 2.0, 8.0], [0, 1, 2]),
        ([1.1, 2.0, 4.1], []),
    ],
)
def test_stages_that_take_another_share_of_the_time_are_told(
    costs: list[float], moved: list[int]
) -> None:
    assert fitted()[-1].drifted_stages(np.array(costs)) == moved


@given(st.floats(0.1, 10), st.floats(1.0001, 50))
def test_budget_grid_spans_the_costs_in_small_steps(first: float, factor: float) -> None:
    grid = budget_grid(np.array([first, first * factor]))
    assert (grid[0], grid[-1]) == (first, first * factor)
    assert 25 <= len(grid) <= 801
    steps = grid[1:] / grid[:-1]
    assert (steps > 1).all()
    # 800 steps of 0.3 % span a factor of 11; with more than that to span the steps are wider.
    assert (steps < max(1.00302, factor ** (1 / 799))).all()


def test_budget_grid_of_costs_far_apart_stays_within_its_size() -> None:
    grid = budget_grid(np.array([0.01, 1000.0]))
    assert len(grid) == 801
    assert grid[1:] / grid[:-1] == pytest.approx(np.full(800, 1e5 ** (1 / 800)))


def test_a_gap_behind_which_nothing_is_gained_is_not_worth_crossing() -> None:
    costs = np.array([1.0, 2.0, 4.0])
    rates = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]])
    useless = Frontier(np.arange(3.0), rates, np.array([0.6, 0.7, 0.7]), costs)
    assert useless.useful_budget_ms(3.0) == 1.5
    assert useless.useful_budget_ms(1.2) == 1.2  # up to the next point there is something to gain
    assert useless.useful_budget_ms(9.0) == 9.0  # where all runs to the end there is no gap
    useful = Frontier(np.arange(3.0), rates, np.array([0.6, 0.7, 0.8]), costs)
    assert useful.useful_budget_ms(3.0) == 3.0
