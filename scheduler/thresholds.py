"""Thresholds on exit scores: from an exit distribution, repaired to keep a budget."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.policy import Decision, Scored, Step

Array = NDArray[np.float64]

REPAIR_STEPS = 40
CLOSE_ENOUGH = 0.9995  # of the budget
LAST_ROW = 0.1  # of a row: finer steps of theta move none


def quantile_thresholds(scores: Array, distribution: Array) -> Array:
    """Thresholds that send given shares of the rows to each exit (Ilhan et al., section 3.3).

    Going through the exits, t_k is the score of the round(N p_k)-th best row among those that have
    not left. An exit that nobody is to take gets +inf, one that takes all who are left -inf.

    Args:
        scores: (N, K).
        distribution: Shares p, (K,), summing to 1.

    Returns:
        Thresholds (K,), the last -inf. Ties at a threshold leave together.
    """
    num_rows, num_exits = scores.shape
    thresholds = np.full(num_exits, np.inf)
    thresholds[-1] = -np.inf
    # Rounding the running total keeps the error of every exit within half a row.
    quotas = np.diff(np.rint(num_rows * np.cumsum(distribution)), prepend=0.0).astype(int)
    staying = np.arange(num_rows)
    for k in range(num_exits - 1):
        column = scores[staying, k]
        if quotas[k] >= len(column):
            thresholds[k] = -np.inf
        elif quotas[k] > 0:
            thresholds[k] = np.partition(column, len(column) - quotas[k])[len(column) - quotas[k]]
        staying = staying[column < thresholds[k]]
    return thresholds


def route(scores: Array, thresholds: Array) -> NDArray[np.intp]:
    """The exit (N,) each row takes: the first whose score (N, K) reaches its threshold (K,)."""
    exits: NDArray[np.intp] = (scores >= thresholds).argmax(1)
    return exits


def tilt(distribution: Array, costs: Array, budget: float) -> Array:
    """The distribution `p_k exp(-theta c_k)`, normalised, whose mean cost is the budget.

    Args:
        distribution: p (K,), non-negative.
        costs: Rising costs (K,).
        budget: Between the costs of the cheapest and the most expensive exit that p reaches;
            clamped to them otherwise.
    """
    scale = 1 / max(np.ptp(costs[distribution > 0]), 1e-300)
    low, high = -1e3 * scale, 1e3 * scale
    for _ in range(60):
        theta = (low + high) / 2
        if _tilted(distribution, costs, theta) @ costs > budget:
            low = theta
        else:
            high = theta
    return _tilted(distribution, costs, high)


def repaired_thresholds(scores: Array, distribution: Array, costs: Array, budget: float) -> Array:
    """Thresholds near a distribution that cost at most the budget, as close as ties allow.

    Rounding and ties move the realised cost off `p . c`, so the distribution is tilted,
    `p_k exp(-theta c_k)`, with theta by bisection on the realised cost.

    Args:
        scores: (N, K).
        distribution: The exit distribution aimed at, (K,).
        costs: Rising costs (K,).
        budget: At least `costs[0]`.

    Returns:
        Thresholds (K,).
    """
    best, best_cost = np.full(len(costs), -np.inf), float(costs[0])  # all leave at once
    cheap, dear = math.inf, -math.inf  # thetas known to cost at most, and more than, the budget
    span = float(costs[-1] - costs[0]) or 1.0
    theta, step = 0.0, 1e-3 / span
    for _ in range(REPAIR_STEPS):
        thresholds = quantile_thresholds(scores, _tilted(distribution, costs, theta))
        cost = float(costs[route(scores, thresholds)].mean())
        if cost <= budget:
            cheap = theta
            if cost > best_cost:
                best, best_cost = thresholds, cost
            if cost >= budget * CLOSE_ENOUGH:
                break
        else:
            dear = theta
        if (cheap - dear) * span * len(scores) < LAST_ROW:
            break  # no quota changes any more
        if math.isinf(cheap) or math.isinf(dear):  # not yet between two: go on, ever further
            theta += step if math.isinf(cheap) else -step
            step *= 4
        else:
            theta = (cheap + dear) / 2
    return best


@dataclass(frozen=True)
class ThresholdTable:
    """Thresholds over the range of a policy's parameter: any value has its own at once.

    Attributes:
        parameters: Rising, (G,).
        thresholds: (G, K).
    """

    parameters: Array
    thresholds: Array

    def __post_init__(self) -> None:
        if self.thresholds.ndim != 2 or self.parameters.shape != self.thresholds.shape[:1]:
            raise ValueError(
                f"there are thresholds {self.thresholds.shape} for parameters "
                f"{self.parameters.shape}"
            )

    @classmethod
    def closed(cls, num_exits: int) -> "ThresholdTable":
        """No exit fires but the last: the table of a policy that has no thresholds yet."""
        return cls(np.zeros(1), np.array([[np.inf] * (num_exits - 1) + [-np.inf]]))

    def at(self, parameters: Array) -> Array:
        """The thresholds in force at parameter values; (...) in, (..., K) out."""
        # The grid point below: a parameter between two points never spends more than it says.
        below = np.searchsorted(self.parameters, parameters, side="right") - 1
        thresholds: Array = self.thresholds[np.maximum(below, 0)]
        return thresholds


@dataclass(frozen=True)
class ThresholdPolicy(ABC):
    """Base of the policies whose score meets a threshold; the parameter is the budget in ms."""

    table: ThresholdTable

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.table.thresholds[0])

    @property
    def never_exit_parameter(self) -> float:
        """The largest budget: every row runs to the last exit."""
        return float(self.table.parameters[-1])

    @abstractmethod
    def score(self, exit: int, log_probs: NDArray[np.floating], history: Array) -> Scored:
        """The score of each row."""

    def step(
        self, exit: int, log_probs: NDArray[np.floating], history: Array, parameters: Array
    ) -> Step:
        """Score and decide."""
        scored = self.score(exit, log_probs, history)
        return Step.of(scored, self.decide(exit, scored, parameters))

    def decide(self, exit: int, scored: Scored, parameters: Array) -> Decision:
        """Leave where the score reaches the threshold of the row's own budget."""
        thresholds = self.table.at(parameters)[:, exit]
        return Decision(scored.scores >= thresholds, thresholds)

    def needs(self, exit: int, parameter: float) -> bool:
        """Where this exit or a later one has a threshold that some score can reach."""
        last = exit == self.num_exits - 1
        return last or bool((self.thresholds(parameter)[exit:-1] < np.inf).any())

    def thresholds(self, parameter: float) -> Array:
        """The thresholds (K,) at one budget."""
        return self.table.at(np.array(parameter))


def tabulate(
    scores: Array,
    costs_ms: Array,
    budgets: Array,
    distributions: Array,
    parameters: Array | None = None,
) -> ThresholdTable:
    """Turn exit distributions into thresholds that keep every budget on the calibration rows.

    Args:
        scores: Exit scores of the calibration rows, (N, K).
        costs_ms: Rising costs (K,).
        budgets: Rising, from `costs_ms[0]`, (G,).
        distributions: The exit distribution wanted at each budget, (G, K).
        parameters: The budgets that the thresholds stand for, rising up to `costs_ms[-1]`, where
            they are not those that are to be spent, (G,).

    Returns:
        A row of thresholds per budget; at the last nobody leaves early.
    """
    rows = [
        repaired_thresholds(scores, distribution, costs_ms, budget)
        for budget, distribution in zip(budgets[:-1], distributions[:-1], strict=True)
    ]
    everyone_stays = ThresholdTable.closed(len(costs_ms)).thresholds[0]
    return ThresholdTable(
        budgets if parameters is None else parameters, np.stack([*rows, everyone_stays])
    )


def _tilted(distribution: Array, costs: Array, theta: float) -> Array:
    """`p_k exp(-theta c_k)`, normalised; exits that p does not reach stay out."""
    reached = distribution > 0
    exponents = np.log(distribution[reached]) - theta * (costs[reached] - costs[reached].mean())
    weights = np.exp(exponents - exponents.max())
    tilted = np.zeros_like(distribution)
    tilted[reached] = weights / weights.sum()
    return tilted
