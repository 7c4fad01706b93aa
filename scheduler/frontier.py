"""The frontier of a fitted policy: expected exits, cost and accuracy at every parameter."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Reference = Literal["labels", "last_exit"]
GRID_STEP = 0.003
MAX_GRID = 800
ROUNDING = 1e-9
GAP = 0.05  # relative step of cost above which two neighbouring points have a gap between them
MOVED_SHARE = 0.2  # relative change of a stage's share of the time that counts as drift


class FrontierPoint(NamedTuple):
    """The expectations at one value of the policy's parameter; `exit_rates` is (K,)."""

    parameter: float
    expected_cost_ms: float
    expected_accuracy: float
    exit_rates: Array


@dataclass(frozen=True)
class Frontier:
    """The curve of a fitted policy, in the order of rising cost.

    Attributes:
        parameters: The policy's scalar at each point, rising or falling, (G,).
        exit_rates: Expected share of rows that leave at each exit, (G, K).
        expected_accuracy: Expected share of right predictions, by pixel in a segmentation, (G,).
        costs_ms: Latency from the start until each exit, rising, (K,).
        reference: What `expected_accuracy` takes to be right: the labels, or the predictions of the
            last exit, where it is the agreement with them.
        label_sets: Whether the pixels of a row are labels that it has or not. A row then differs
            from another if any of its labels does.
    """

    parameters: Array
    exit_rates: Array
    expected_accuracy: Array
    costs_ms: Array
    reference: Reference = "labels"
    label_sets: bool = False

    def __post_init__(self) -> None:
        points, exits = self.parameters.shape, self.costs_ms.shape
        if self.exit_rates.shape != points + exits or self.expected_accuracy.shape != points:
            raise ValueError("the numbers of parameters, exit rates, accuracies and costs disagree")

    @cached_property
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
        """Return the most expensive point that costs at most `cost_ms`, or else the cheapest."""
        return self[self.index_at_cost(cost_ms)]

    def index_at_cost(self, cost_ms: float) -> int:
        """Return the index of the point of `at_cost`."""
        cost_ms *= 1 + ROUNDING  # a point's own cost, computed another way, must find that point
        return max(int(np.searchsorted(self.expected_costs_ms, cost_ms, side="right")) - 1, 0)

    def useful_budget_ms(self, cost_ms: float) -> float:
        """Return the part of a mean cost that is worth spending.

        It is all of it, since a controller can alternate between two points. The exception is a gap
        after which accuracy does not rise: the policy found that more time does not help.
        """
        place = self.index_at_cost(cost_ms)
        costs, accuracy = self.expected_costs_ms, self.expected_accuracy
        is_gap = place + 1 < len(self) and costs[place + 1] > (1 + GAP) * costs[place]
        if is_gap and accuracy[place + 1] <= accuracy[place]:
            return min(float(costs[place]), cost_ms)
        return cost_ms

    def at_parameter(self, parameter: float) -> FrontierPoint:
        """Return the most expensive point that spends no more than the parameter does."""
        direction = 1 if self.parameters[-1] >= self.parameters[0] else -1
        reached = np.searchsorted(direction * self.parameters, direction * parameter, side="right")
        return self[max(int(reached) - 1, 0)]

    def nearest(self, parameter: float) -> int:
        """Return the index of the point whose parameter is nearest."""
        return int(np.abs(self.parameters - parameter).argmin())

    def variance(self, point: FrontierPoint) -> float:
        """Return the variance of a sample's cost at a point, in ms^2."""
        spread_ms = self.costs_ms - point.expected_cost_ms
        return float(point.exit_rates @ spread_ms**2)

    def with_costs(self, costs_ms: Array) -> "Frontier":
        """Return the frontier with the costs of another host.

        Exits do not depend on costs, so the expectations stay exact without a new fit. Points that
        no longer cost more than all points before them are dropped.
        """
        return replace(self, costs_ms=costs_ms).pareto()

    def pareto(self) -> "Frontier":
        """Drop the points that cost no more than one before them.

        The last point always stays: only it is sure to run every row to the end.
        """
        costs = self.expected_costs_ms
        kept = np.concatenate([[True], costs[1:] > np.maximum.accumulate(costs)[:-1]])
        if not kept[-1]:
            kept[np.flatnonzero(kept)[-1]] = False
            kept[-1] = True
        return self._of_points(kept)

    def spread(self, count: int) -> "Frontier":
        """Keep at most `count` points, spread evenly over the cost; both ends stay."""
        costs = self.expected_costs_ms
        targets = np.linspace(costs[0], costs[-1], count)
        middles = (costs[1:] + costs[:-1]) / 2
        kept = np.unique(np.searchsorted(middles, targets))
        return self._of_points(kept)

    def _of_points(self, kept: NDArray[np.bool_] | NDArray[np.intp]) -> "Frontier":
        return replace(
            self,
            parameters=self.parameters[kept],
            exit_rates=self.exit_rates[kept],
            expected_accuracy=self.expected_accuracy[kept],
        )

    def drifted_stages(self, costs_ms: Array) -> list[int]:
        """Return the stages whose share of the whole time changes by more than 20 %."""
        before = np.diff(self.costs_ms, prepend=0.0) / self.costs_ms[-1]
        after = np.diff(costs_ms, prepend=0.0) / costs_ms[-1]
        return [int(k) for k in np.flatnonzero(np.abs(after / before - 1) > MOVED_SHARE)]


def budget_grid(costs_ms: Array) -> Array:
    """Return budgets from the first to the last exit's cost, (G,): 25 to 801 steps of 0.3 %."""
    steps = int(np.ceil(np.log(costs_ms[-1] / costs_ms[0]) / GRID_STEP))
    grid: Array = np.geomspace(costs_ms[0], costs_ms[-1], min(max(steps, 24), MAX_GRID) + 1)
    grid[0], grid[-1] = costs_ms[0], costs_ms[-1]
    return grid
