"""What a fitted policy buys at every cost: parameter -> expected exits, cost and accuracy."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.thresholds import ThresholdTable, repaired_thresholds, route

Array = NDArray[np.float64]
GRID_STEP = 0.003
ROUNDING = 1e-9


class FrontierPoint(NamedTuple):
    """What to expect at one value of the policy's parameter; `exit_rates` is (K,)."""

    parameter: float
    expected_cost_ms: float
    expected_accuracy: float
    exit_rates: Array


@dataclass(frozen=True)
class Frontier:
    """The curve of a fitted policy, in the order of its rising parameter.

    Attributes:
        parameters: The policy's scalar at each point, rising, (G,).
        exit_rates: Share of the calibration rows that leave at each exit, (G, K).
        expected_accuracy: Share of right answers on the calibration rows, (G,).
        costs_ms: Latency from the start until each exit, rising, (K,).
    """

    parameters: Array
    exit_rates: Array
    expected_accuracy: Array
    costs_ms: Array

    @property
    def expected_costs_ms(self) -> Array:
        """Mean cost at each point, (G,)."""
        costs: Array = self.exit_rates @ self.costs_ms
        return costs

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, index: int) -> FrontierPoint:
        return FrontierPoint(
            float(self.parameters[index]),
            float(self.exit_rates[index] @ self.costs_ms),
            float(self.expected_accuracy[index]),
            self.exit_rates[index],
        )

    def at_cost(self, cost_ms: float) -> FrontierPoint:
        """The dearest point that costs at most `cost_ms`; the cheapest where none does."""
        cost_ms *= 1 + ROUNDING  # so that the cost of a point, worked out another way, finds it
        return self[max(int(np.searchsorted(self.expected_costs_ms, cost_ms, side="right")) - 1, 0)]

    def at_parameter(self, parameter: float) -> FrontierPoint:
        """The point in force at a parameter value: the last one not above it."""
        return self[max(int(np.searchsorted(self.parameters, parameter, side="right")) - 1, 0)]

    def with_costs(self, costs_ms: Array) -> "Frontier":
        """The same exits at the costs of another host.

        Routing does not depend on costs, so the expectations stay exact without refitting. Points
        that no longer cost more than all before them are dropped.
        """
        moved = replace(self, costs_ms=costs_ms)
        rising = _rising(moved.expected_costs_ms)
        return replace(
            moved,
            parameters=self.parameters[rising],
            exit_rates=self.exit_rates[rising],
            expected_accuracy=self.expected_accuracy[rising],
        )


class Tabulated(NamedTuple):
    """Thresholds for every budget, and what they make of the calibration rows."""

    table: ThresholdTable
    frontier: Frontier


def budget_grid(costs_ms: Array) -> Array:
    """Budgets from the first exit's cost to the last one's, in steps of at most 0.3 %, (G,)."""
    steps = int(np.ceil(np.log(costs_ms[-1] / costs_ms[0]) / GRID_STEP))
    grid: Array = np.geomspace(costs_ms[0], costs_ms[-1], max(steps, 1) + 1)
    grid[0], grid[-1] = costs_ms[0], costs_ms[-1]
    return grid


def tabulate(
    scores: Array, correct: NDArray[np.bool_], costs_ms: Array, budgets: Array, distributions: Array
) -> Tabulated:
    """Turn exit distributions into thresholds that keep every budget on the calibration rows.

    Args:
        scores: Exit scores of the calibration rows, (N, K).
        correct: Whether each exit's answer is right, (N, K).
        costs_ms: Rising costs (K,).
        budgets: Rising, from `costs_ms[0]` to `costs_ms[-1]`, (G,).
        distributions: The exit distribution wanted at each budget, (G, K).

    Returns:
        A row of thresholds per budget and the frontier, both with the budget as the parameter.
        Budgets that cost no more than a smaller one (ties in the scores) are left out.
    """
    rows = [
        repaired_thresholds(scores, distribution, costs_ms, budget)
        for budget, distribution in zip(budgets[:-1], distributions[:-1], strict=True)
    ]
    everyone_stays = np.array([np.inf] * (len(costs_ms) - 1) + [-np.inf])
    thresholds = np.stack([*rows, everyone_stays])
    exits = np.stack([route(scores, row) for row in thresholds])  # (G, N)
    rates = np.stack([(exits == k).mean(1) for k in range(len(costs_ms))], 1)
    accuracy = correct[np.arange(len(correct)), exits].mean(1)
    kept = _rising(rates @ costs_ms)
    frontier = Frontier(budgets[kept], rates[kept], accuracy[kept], costs_ms)
    return Tabulated(ThresholdTable(budgets[kept], thresholds[kept]), frontier)


def _rising(costs: Array) -> NDArray[np.bool_]:
    """Which points cost more than all before them, (G,)."""
    higher = costs[1:] > np.maximum.accumulate(costs)[:-1]
    return np.concatenate([np.array([True]), higher])
