"""Policies with thresholds on exit scores, and thresholds that keep a budget."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from scheduler.policy import CalibrationSet, ExitDecision, ExitScores, PolicyKind

Array = NDArray[np.float64]

REPAIR_STEPS = 40
CLOSE_ENOUGH = 0.9995  # share of the budget that ends the search
QUOTA_ROUNDING = 1e-6  # of a row, in sums of weights
LAST_ROW = 0.1  # share of a row: a smaller step of theta moves no row


def quantile_thresholds(scores: Array, distribution: Array, weights: Array | None = None) -> Array:
    """Return thresholds that send given shares of rows to each exit (Ilhan et al., section 3.3).

    Exit by exit, t_k is the score of the round(N p_k)-th best row among those that have not left.
    An exit that no row should take gets +inf, one that takes all remaining rows gets -inf.

    Args:
        scores: (N, K).
        distribution: Shares p, (K,), summing to 1.
        weights: How many rows each row counts for, with a mean of 1, (N,); None: 1 each.

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
        if quotas[k] > 0:
            counted = None if weights is None else weights[staying]
            thresholds[k] = _threshold_of_best(column, int(quotas[k]), counted)
        staying = staying[column < thresholds[k]]
    return thresholds


def _threshold_of_best(scores: Array, quota: int, weights: Array | None) -> float:
    """Return the score that the best rows reach, as many as fill the quota; -inf if all must."""
    if weights is None:
        place = len(scores) - quota
        return float(np.partition(scores, place)[place]) if place > 0 else -math.inf
    falling = np.argsort(-scores, kind="stable")
    filled = np.cumsum(weights[falling])
    place = int(np.searchsorted(filled, quota - QUOTA_ROUNDING))
    return float(scores[falling[place]]) if place < len(scores) - 1 else -math.inf


def route(scores: Array, thresholds: Array) -> NDArray[np.intp]:
    """Return the exit (N,) of each row: the first whose score (N, K) reaches the threshold (K,)."""
    exits: NDArray[np.intp] = (scores >= thresholds).argmax(1)
    return exits


def tilt(distribution: Array, costs: Array, budget: float) -> Array:
    """Return the distribution `p_k exp(-theta c_k)`, normalised, whose mean cost is the budget.

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


def repaired_thresholds(
    scores: Array, distribution: Array, costs: Array, budget: float, weights: Array | None = None
) -> Array:
    """Return thresholds near a distribution that cost at most the budget, as close as ties allow.

    Rounding and ties move the realised cost away from `p . c`. The distribution is therefore
    tilted, `p_k exp(-theta c_k)`, and theta found by bisection on the realised cost.

    Args:
        scores: (N, K).
        distribution: The target exit distribution, (K,).
        costs: Rising costs (K,).
        budget: At least `costs[0]`.
        weights: As in `quantile_thresholds`, (N,).

    Returns:
        Thresholds (K,).
    """
    best, best_cost = np.full(len(costs), -np.inf), float(costs[0])  # all leave at once
    within, above = math.inf, -math.inf  # thetas known to cost at most, and more than, the budget
    span = float(costs[-1] - costs[0]) or 1.0
    theta, step = 0.0, 1e-3 / span
    for _ in range(REPAIR_STEPS):
        thresholds = quantile_thresholds(scores, _tilted(distribution, costs, theta), weights)
        cost = float(np.average(costs[route(scores, thresholds)], weights=weights))
        if cost <= budget:
            within = theta
            if cost > best_cost:
                best, best_cost = thresholds, cost
            if cost >= budget * CLOSE_ENOUGH:
                break
        else:
            above = theta
        if (within - above) * span * len(scores) < LAST_ROW:
            break  # no quota changes any more
        if math.isinf(within) or math.isinf(above):  # not bracketed yet: widen the search
            theta += step if math.isinf(within) else -step
            step *= 4
        else:
            theta = (within + above) / 2
    return best


@dataclass(frozen=True)
class ThresholdTable:
    """Thresholds for every value of a policy's parameter.

    Attributes:
        parameters: Rising, (G,).
        thresholds: (G, K).
    """

    parameters: Array
    thresholds: Array

    def __post_init__(self) -> None:
        if self.thresholds.ndim != 2 or self.parameters.shape != self.thresholds.shape[:1]:
            raise ValueError(
                f"thresholds have the shape {self.thresholds.shape}, parameters the shape "
                f"{self.parameters.shape}; give one row of thresholds for each parameter"
            )

    @classmethod
    def closed(cls, num_exits: int) -> "ThresholdTable":
        """Return the table of a policy without thresholds: only the last exit fires."""
        return cls(np.zeros(1), np.array([[np.inf] * (num_exits - 1) + [-np.inf]]))

    def at(self, parameters: Array) -> Array:
        """Look up the thresholds at parameter values; (...) in, (..., K) out."""
        # The grid point below: a budget between two points never spends more than itself.
        below = np.searchsorted(self.parameters, parameters, side="right") - 1
        thresholds: Array = self.thresholds[np.maximum(below, 0)]
        return thresholds


@dataclass(frozen=True)
class ThresholdPolicy(ABC):
    """Base of the policies that compare a score with a threshold.

    The parameter is the budget in ms. A subclass defines `kind`, `start` and `score`.
    """

    table: ThresholdTable

    @property
    def num_exits(self) -> int:
        """K, the number of exits."""
        return len(self.table.thresholds[0])

    @property
    def never_exit_parameter(self) -> float:
        """The largest budget: every row runs to the last exit."""
        return float(self.table.parameters[-1])

    @abstractmethod
    def score(self, exit: int, log_probs: NDArray[np.floating], history: Array) -> ExitScores:
        """Score rows at an exit."""

    def step(
        self, exit: int, log_probs: NDArray[np.floating], history: Array, parameters: Array
    ) -> ExitDecision:
        """Score rows and decide which leave."""
        return self.decide(exit, self.score(exit, log_probs, history), parameters)

    def decide(self, exit: int, scored: ExitScores, parameters: Array) -> ExitDecision:
        """Leave where the score reaches the threshold of the row's own budget."""
        scores, history, _ = scored
        thresholds = self.table.at(parameters)[:, exit]
        return ExitDecision(scores, history, scores >= thresholds, thresholds)

    def needs(self, exit: int, parameter: float) -> bool:
        """Whether a score can reach the threshold of this exit or of a later early exit."""
        last = exit == self.num_exits - 1
        return last or bool((self.thresholds(parameter)[exit:-1] < np.inf).any())

    def thresholds(self, parameter: float) -> Array:
        """Return the thresholds (K,) at one budget."""
        return self.table.at(np.array(parameter))


T = TypeVar("T", bound=ThresholdPolicy)


def threshold_kind(
    name: str,
    summary: str,
    colour: str,
    *,
    fit: Callable[[CalibrationSet, int], T],
    make: Callable[[ThresholdTable], T],
) -> PolicyKind[T]:
    """Describe a policy that is made of its thresholds alone.

    Args:
        name: As in `PolicyKind`.
        summary: As in `PolicyKind`.
        colour: As in `PolicyKind`.
        fit: As in `PolicyKind`.
        make: Makes the policy from its thresholds.
    """
    return PolicyKind(
        name,
        summary,
        colour,
        fit=fit,
        parameters=table_parameters,
        arrays=table_arrays,
        load=lambda arrays, num_exits: make(load_table(arrays)),
        parameter_is_budget=True,
    )


def table_parameters(policy: ThresholdPolicy, calibration: CalibrationSet) -> Array:
    """Return the budgets that a policy has thresholds for, (G,)."""
    return policy.table.parameters


def table_arrays(policy: ThresholdPolicy) -> dict[str, Array]:
    """Return the arrays that store a policy's thresholds."""
    return {
        "table_parameters": policy.table.parameters,
        "table_thresholds": policy.table.thresholds,
    }


def load_table(arrays: Mapping[str, Array]) -> ThresholdTable:
    """Rebuild the thresholds from `table_arrays`."""
    return ThresholdTable(arrays["table_parameters"], arrays["table_thresholds"])


def tabulate(
    scores: Array,
    costs_ms: Array,
    budgets: Array,
    distributions: Array,
    parameters: Array | None = None,
    weights: Array | None = None,
) -> ThresholdTable:
    """Turn exit distributions into thresholds that keep every budget on the calibration rows.

    Args:
        scores: Exit scores of the calibration rows, (N, K).
        costs_ms: Rising costs (K,).
        budgets: The costs to spend, rising from `costs_ms[0]`, (G,).
        distributions: The target exit distribution at each budget, (G, K).
        parameters: The budgets that the thresholds are listed under, rising up to `costs_ms[-1]`,
            if they differ from the costs to spend, (G,).
        weights: As in `quantile_thresholds`, (N,).

    Returns:
        A row of thresholds per budget; at the last budget no row leaves early.
    """
    rows = [
        repaired_thresholds(scores, distribution, costs_ms, budget, weights)
        for budget, distribution in zip(budgets[:-1], distributions[:-1], strict=True)
    ]
    never_early = ThresholdTable.closed(len(costs_ms)).thresholds[0]
    return ThresholdTable(
        budgets if parameters is None else parameters, np.stack([*rows, never_early])
    )


def _tilted(distribution: Array, costs: Array, theta: float) -> Array:
    """Return `p_k exp(-theta c_k)`, normalised; it is 0 where p is 0."""
    reached = distribution > 0
    exponents = np.log(distribution[reached]) - theta * (costs[reached] - costs[reached].mean())
    weights = np.exp(exponents - exponents.max())
    tilted = np.zeros_like(distribution)
    tilted[reached] = weights / weights.sum()
    return tilted
