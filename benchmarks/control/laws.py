"""Control laws that hold a budget: the server's controller, and those it was compared with."""

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.control.policy_replay import PolicyReplay
from benchmarks.control.scenarios import Measure
from scheduler.control.controller import BudgetController, ControllerConfig, Sample
from scheduler.control.estimates import CostEstimate
from scheduler.stopping import StoppingPolicy

Array = NDArray[np.float64]
SLOWDOWN_SAMPLES = 200.0
RECENT_SCORES = 256
# Share of the budget that the other laws aim at: the margin of the controller in calm traffic.
AIM = 0.987


class Controlled:
    """The server's own controller."""

    def __init__(
        self,
        fitted: PolicyReplay,
        budget_ms: float,
        config: ControllerConfig,
        measure: Measure = "compute",
    ) -> None:
        self.controller = BudgetController(fitted.frontier, budget_ms, config)
        self._fitted, self._measure = fitted, measure
        self._points = {value: g for g, value in enumerate(fitted.frontier.parameters.tolist())}
        self._follow()

    @property
    def parameter(self) -> float:
        """The policy's parameter."""
        return self.controller.parameter

    def set_budget(self, budget_ms: float) -> None:
        """Set the budget from now on."""
        self.controller.set_budget(budget_ms)
        self._follow()

    def leaves(self, exit: int, row: int, waiting: float) -> bool:
        """Decide at the parameter in force."""
        place = min(int(waiting), len(self._leave) - 1)
        return bool(self._leave[place][exit, row])

    def observe(self, sample: Sample, now_s: float) -> None:
        """Pass a sample to the controller."""
        if self.controller.observe([sample], now_s):
            self._follow()

    def _follow(self) -> None:
        control = self.controller
        queued = control.queued_parameters if self._measure == "end_to_end" else ()
        self._leave = [
            self._fitted.leave[self._points[each]] for each in (control.parameter, *queued)
        ]


class KalmanEstimate(CostEstimate):
    """Estimates the slowdown by a Kalman filter: a random walk with noisy observations.

    The variance of the observations is learned from the innovations; the walk has a standard
    deviation of 0.5 % per sample.
    """

    walk = 0.005**2

    def __init__(self, cost_ms: float) -> None:
        super().__init__(cost_ms)
        self._error, self._noise = 1.0, 0.01  # variances: of the estimate, of a sample

    def update(
        self,
        cost_ms: float,
        compute_ms: float,
        overhead_ms: float,
        waiting_ms: float,
        memory: float,
    ) -> None:
        """Update the running means as the controller does, but the slowdown by the filter."""
        innovation = compute_ms / cost_ms - self.slowdown
        self._error += self.walk
        gain = self._error / (self._error + self._noise)
        slowdown = self.slowdown + gain * innovation
        self._error *= 1 - gain
        self._noise += (innovation**2 - self._noise) / memory
        super().update(cost_ms, compute_ms, overhead_ms, waiting_ms, memory)
        self.slowdown = slowdown


def kalman(fitted: PolicyReplay, budget_ms: float) -> Controlled:
    """Make the server's controller with another estimate of the slowdown."""
    law = Controlled(fitted, budget_ms, ControllerConfig())
    law.controller.present = KalmanEstimate(float(fitted.frontier.costs_ms[-1]))
    return law


class Frozen:
    """Stays at the point of the frontier that calibration gives for the budget."""

    def __init__(self, fitted: PolicyReplay, budget_ms: float) -> None:
        self._fitted = fitted
        self.set_budget(budget_ms)

    @property
    def parameter(self) -> float:
        """The policy's parameter."""
        return self._fitted.frontier[self._point].parameter

    def set_budget(self, budget_ms: float) -> None:
        """Move to the point of another budget."""
        self._point = self._fitted.frontier.index_at_cost(budget_ms)

    def leaves(self, exit: int, row: int, waiting: float) -> bool:
        """Decide at the point in force."""
        return bool(self._fitted.leave[self._point, exit, row])

    def observe(self, sample: Sample, now_s: float) -> None:
        """Learn nothing."""


class Integral:
    """Integral control of the target cost along the frontier: u += eta (B - latency)."""

    eta = 0.005

    def __init__(self, fitted: PolicyReplay, budget_ms: float) -> None:
        self._fitted = fitted
        self._aim_ms = self._budget_ms = AIM * budget_ms
        self.set_budget(budget_ms)

    @property
    def parameter(self) -> float:
        """The policy's parameter."""
        return self._fitted.frontier[self._point].parameter

    def set_budget(self, budget_ms: float) -> None:
        """Feed the step of the budget forward."""
        self._aim_ms += AIM * budget_ms - self._budget_ms
        self._budget_ms = AIM * budget_ms
        self._move(0.0)

    def leaves(self, exit: int, row: int, waiting: float) -> bool:
        """Decide at the point in force."""
        return bool(self._fitted.leave[self._point, exit, row])

    def observe(self, sample: Sample, now_s: float) -> None:
        """Move by the error, within the frontier."""
        self._move(self.eta * (self._budget_ms - sample.latency_ms))

    def _move(self, step_ms: float) -> None:
        costs = self._fitted.frontier.costs_ms
        self._aim_ms = min(max(self._aim_ms + step_ms, float(costs[0])), float(costs[-1]))
        self._point = self._fitted.frontier.index_at_cost(self._aim_ms)


class Advantage:
    """Integrates the error on the threshold: leave iff score - threshold at B >= delta.

    delta <- clip(delta - eta (latency - B) / B); a step of the budget starts from its thresholds.
    """

    eta = 0.003
    span = 1.0

    def __init__(self, fitted: PolicyReplay, budget_ms: float) -> None:
        self._fitted = fitted
        self._delta = 0.0
        self.set_budget(budget_ms)

    @property
    def parameter(self) -> float:
        """Delta, the offset of the thresholds."""
        return self._delta

    def set_budget(self, budget_ms: float) -> None:
        """Take the thresholds of another point."""
        self._budget_ms = AIM * budget_ms
        value = np.array([self._fitted.frontier.at_cost(self._budget_ms).parameter])
        self._advantage = np.stack(
            [
                scored.scores
                - np.clip(self._fitted.policy.decide(exit, scored, value).thresholds, -1, 2)
                for exit, scored in enumerate(self._fitted.replayed[:-1])
            ]
        )

    def leaves(self, exit: int, row: int, waiting: float) -> bool:
        """Decide by how much the score exceeds its threshold."""
        return bool(self._advantage[exit, row] >= self._delta)

    def observe(self, sample: Sample, now_s: float) -> None:
        """Leave earlier after spending too much."""
        step = self.eta * (sample.latency_ms - self._budget_ms) / self._budget_ms
        self._delta = min(max(self._delta - step, -self.span), self.span)


class Dual:
    """Dual ascent on the price of a millisecond: lambda <- clip(lambda + eta (latency - B))."""

    eta = 0.01

    def __init__(self, fitted: PolicyReplay, budget_ms: float) -> None:
        if not isinstance(fitted.policy, StoppingPolicy):
            raise ValueError(f"{fitted.policy.kind} has no price to ascend on")
        self._fitted = fitted
        prices = fitted.frontier.parameters
        inner = prices[(prices >= 0) & (prices < fitted.policy.exit_at_first_parameter)]
        self._low, self._high = 0.0, float(np.percentile(inner, 99))
        self.set_budget(budget_ms)

    @property
    def parameter(self) -> float:
        """The price of a millisecond."""
        return self._price

    def set_budget(self, budget_ms: float) -> None:
        """Start from the frontier's price."""
        self._budget_ms = AIM * budget_ms
        wanted = self._fitted.frontier.at_cost(self._budget_ms).parameter
        self._price = min(max(wanted, self._low), self._high)
        self._move()

    def leaves(self, exit: int, row: int, waiting: float) -> bool:
        """Decide at the price in force."""
        return bool(self._fitted.leave[self._point, exit, row])

    def observe(self, sample: Sample, now_s: float) -> None:
        """Raise the price after spending too much."""
        error = (sample.latency_ms - self._budget_ms) / self._budget_ms
        step = self.eta * error * self._high / 10
        self._price = min(max(self._price + step, self._low), self._high)
        self._move()

    def _move(self) -> None:
        prices = self._fitted.frontier.parameters  # falling
        self._point = min(int(np.searchsorted(-prices, -self._price)), len(prices) - 1)


class Quantiles:
    """Thresholds at running quantiles of recent scores that give the frontier's exit rates."""

    def __init__(self, fitted: PolicyReplay, budget_ms: float) -> None:
        self._fitted = fitted
        exits = range(len(fitted.frontier.costs_ms) - 1)
        self._recent = [deque[float](maxlen=RECENT_SCORES) for _ in exits]
        self._thresholds: list[float | None] = [None for _ in exits]
        self._scores = [scored.scores.tolist() for scored in fitted.replayed[:-1]]
        self._slowdown = 1.0
        self._seen = 0
        self.set_budget(budget_ms)

    @property
    def parameter(self) -> float:
        """The threshold at exit 0."""
        return self._thresholds[0] or 0.0

    def set_budget(self, budget_ms: float) -> None:
        """Aim at other exit rates."""
        self._budget_ms = AIM * budget_ms
        self._aim()

    def leaves(self, exit: int, row: int, waiting: float) -> bool:
        """Leave above the running quantile; decide as `Frozen` until there is one."""
        score = self._scores[exit][row]
        self._recent[exit].append(score)
        threshold = self._thresholds[exit]
        if threshold is None:
            return bool(self._fitted.leave[self._point, exit, row])
        return bool(score >= threshold)

    def observe(self, sample: Sample, now_s: float) -> None:
        """Update the slowdown, and from time to time the thresholds."""
        predicted_ms = float(self._fitted.frontier.costs_ms[sample.exit])
        compute_ms = sample.latency_ms - sample.overhead_ms
        self._slowdown += (compute_ms / predicted_ms - self._slowdown) / SLOWDOWN_SAMPLES
        self._seen += 1
        if self._seen % 25 == 0:
            self._aim()

    def _aim(self) -> None:
        self._point = self._fitted.frontier.index_at_cost(self._budget_ms / self._slowdown)
        left = 1.0
        for exit, share in enumerate(self._fitted.frontier[self._point].exit_rates[:-1].tolist()):
            rate = min(share / max(left, 1e-9), 1.0)
            left -= share
            recent = self._recent[exit]
            full = len(recent) >= RECENT_SCORES // 4
            self._thresholds[exit] = float(np.quantile(recent, 1 - rate)) if full else None


AnyLaw = Controlled | Frozen | Integral | Advantage | Dual | Quantiles
LAWS: dict[str, Callable[[PolicyReplay, float], AnyLaw]] = {
    "frozen": Frozen,
    "integral": Integral,
    "advantage": Advantage,
    "dual": Dual,
    "quantiles": Quantiles,
    "kalman": kalman,
}
