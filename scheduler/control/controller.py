"""Keeps the rolling mean latency under the budget by moving the policy's parameter."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from scheduler.control.estimates import CostEstimate
from scheduler.control.margin import Margin
from scheduler.control.window import RollingWindow
from scheduler.frontier import Frontier, FrontierPoint

LONGEST_MS = 1e8  # more than a day: no latency counts for more, so that sums stay finite


@dataclass(frozen=True)
class ControllerConfig:
    """How the controller looks and steps.

    Attributes:
        window: Completed samples in the rolling mean.
        horizon_share: Share of the window over which credit is spent.
        max_age_s: No sample older than this counts.
        period_samples: A new parameter after so many samples, or a third of the horizon, ...
        period_s: ... or after so much time with at least one sample.
        margins: Least and largest share of the budget left unspent.
        max_correction: Largest share of the budget that credit may add or take.
        ratio_share: Memory of the measured/predicted ratio and of the overhead, as a share of the
            window.
        shift_share: Memory of how far samples leave from where the frontier says, likewise.
    """

    window: int = 1000
    horizon_share: float = 0.15
    max_age_s: float = 60.0
    period_samples: int = 50
    period_s: float = 0.25
    margins: tuple[float, float] = (0.005, 0.1)
    max_correction: float = 0.25
    ratio_share: float = 0.1
    shift_share: float = 0.3

    def __post_init__(self) -> None:
        if self.window < 10:
            raise ValueError(f"window is {self.window} samples; a rolling mean needs at least 10")


class Sample(NamedTuple):
    """One completed sample.

    Attributes:
        exit: The exit it took.
        latency_ms: In the measure under control.
        overhead_ms: The part of it that this sample's exit does not change: waiting and decoding
            under `end_to_end`, else 0.
        waiting_ms: The part of the overhead that was waiting for others.
    """

    exit: int
    latency_ms: float
    overhead_ms: float = 0.0
    waiting_ms: float = 0.0


class BudgetController:
    """Feed-forward from the frontier, corrected by what the window shows.

    Each period it aims at the mean latency that spends the window's remaining credit over the
    coming h samples,

        u = B (1 - m) + sum over those samples that will still be in the window then of
        (B_i (1 - m) - latency_i) / h,   clipped to +-25 % of B,

    where B_i is the budget that was in force when sample i completed. Counting each sample against
    its own budget means that a step of the budget neither punishes nor rewards what was right
    before it. The clip bounds the credit, so nothing winds up.

    The frontier tells which parameter costs u, given how the present differs from calibration
    (`Present`). The margin m follows from the noise that is seen (`Margin`).

    Not thread-safe: one thread tells it everything. Times are seconds of any monotonic clock.

    Args:
        frontier: The policy's frontier at this host's costs.
        budget_ms: The budget, or None for no budget: every sample runs to the end.
        config: Window, period and margins.

    Attributes:
        present: What is known of the present.
    """

    def __init__(
        self, frontier: Frontier, budget_ms: float | None, config: ControllerConfig
    ) -> None:
        self.frontier = frontier
        self.config = config
        self.budget_ms = budget_ms
        self.present = CostEstimate(float(frontier.costs_ms[-1]))
        self._costs_ms: list[float] = frontier.costs_ms.tolist()
        self._window = RollingWindow(config.window, config.max_age_s, len(self._costs_ms))
        self._margin = Margin(*config.margins)
        self._exits_variance = 0.0  # of a sample's latency from its exit alone, in ms^2
        self._period_ms: list[float] = []  # latencies of the period under way
        self._last_update_s: float | None = None
        self._held: FrontierPoint | None = None
        self._aim()

    @property
    def effective_budget_ms(self) -> float | None:
        """The mean latency aimed at now, margin taken off; None without a budget."""
        return self._effective_ms

    @property
    def parameter(self) -> float:
        """The policy's parameter in force."""
        return self._in_force.parameter

    @property
    def unconstrained_parameter(self) -> float:
        """The parameter that the budget alone calls for, whatever is held."""
        return self._chosen.parameter

    @property
    def floor_ms(self) -> float:
        """Expected latency when all leave at exit 0, at present costs."""
        return self.present_ms(self._costs_ms[0])

    @property
    def ceiling_ms(self) -> float:
        """Expected latency when all run to the end, at present costs."""
        return self.present_ms(self._costs_ms[-1])

    @property
    def feasible(self) -> bool:
        """Whether the budget can be kept at present costs, and is not given up for what is held."""
        return self.budget_ms is None or (self.budget_ms >= self.floor_ms and not self.yields)

    @property
    def yields(self) -> bool:
        """Whether the budget gives way to what is held: a cheaper point would be called for."""
        held = self._held
        return held is not None and held.expected_cost_ms > self._chosen.expected_cost_ms

    @property
    def samples(self) -> int:
        """Samples in the window."""
        return len(self._window)

    @property
    def rolling_latency_ms(self) -> float | None:
        """Mean latency over the window; None before the first sample."""
        return self._window.mean_ms

    @property
    def exit_rates(self) -> list[float] | None:
        """Share of the window's samples at each exit, (K,); None before the first sample."""
        return self._window.exit_rates

    @property
    def margin(self) -> float:
        """The share of the budget that is left unspent, so that chance does not pass it."""
        if self.budget_ms is None:
            return 0.0
        room = self._window.capacity
        return self._margin.share(self.budget_ms, self._exits_variance, self._horizon, room)

    def present_ms(self, cost_ms: float) -> float:
        """The latency to expect now where the frontier says `cost_ms`."""
        return self.present.latency_ms(cost_ms)

    def parameter_for(self, budget_ms: float) -> float:
        """The parameter of a request with a mean-cost wish of its own, at present costs."""
        return self.frontier.at_cost(self.present.cost_of_one(budget_ms)).parameter

    def set_budget(self, budget_ms: float | None) -> None:
        """Aim at another budget at once; the window stays."""
        self.budget_ms = budget_ms
        self._aim()

    def set_floor(self, parameter: float | None) -> None:
        """Aim at no point of the frontier cheaper than that of `parameter`; None: at any."""
        self._held = None if parameter is None else self.frontier.at_parameter(parameter)
        self._aim()

    def set_frontier(self, frontier: Frontier) -> None:
        """Go on with another policy's frontier at this host's costs; the window stays.

        What was held was a parameter of the policy before, and is held no more.
        """
        self.frontier = frontier
        self._costs_ms = frontier.costs_ms.tolist()
        self._held, self.present.exit_bias_ms = None, 0.0
        self._aim()

    def expire(self, now_s: float) -> None:
        """Forget samples that are too old, when none arrive that would push them out."""
        self._window.expire(now_s)

    def observe(self, samples: Iterable[Sample], now_s: float) -> bool:
        """Take completed samples in.

        Args:
            samples: Samples under the global budget, in order of completion. A time that is no
                number, or below 0, is a clock's fault, and the sample is not counted.
            now_s: The time.

        Returns:
            Whether a period ended, so that `parameter` was worked out anew.
        """
        for sample in samples:
            if sample.latency_ms >= 0 and sample.overhead_ms >= 0 and sample.waiting_ms >= 0:
                self._add(sample, now_s)
        self.expire(now_s)
        if self._last_update_s is None:
            self._last_update_s = now_s
        waited_s = now_s - self._last_update_s
        period = min(self.config.period_samples, max(self._horizon // 3, 1))
        due = len(self._period_ms) >= period or (
            len(self._period_ms) > 0 and waited_s >= self.config.period_s
        )
        if due:
            self._last_update_s = now_s
            self._learn_noise()
            self._aim()
        return due

    @property
    def _horizon(self) -> int:
        return max(1, round(self.config.horizon_share * self._window.capacity))

    def _add(self, sample: Sample, now_s: float) -> None:
        latency_ms = min(sample.latency_ms, LONGEST_MS)
        overhead_ms = min(sample.overhead_ms, latency_ms)
        waiting_ms = min(sample.waiting_ms, overhead_ms)
        left_ms = 0.0 if self._promised_ms is None else self._promised_ms - latency_ms
        self._window.add(now_s, latency_ms, sample.exit, left_ms)
        self._period_ms.append(latency_ms)
        cost_ms, room = self._costs_ms[sample.exit], self._window.capacity
        compute_ms, memory = latency_ms - overhead_ms, self.config.ratio_share * room
        self.present.update(cost_ms, compute_ms, overhead_ms, waiting_ms, memory)
        memory = self.config.shift_share * room
        self.present.learn_shift(cost_ms, self._in_force.expected_cost_ms, memory)

    def _learn_noise(self) -> None:
        latencies_ms, self._period_ms = self._period_ms, []
        expected_ms = self._latency_at(self._in_force.expected_cost_ms)
        off_ms = math.fsum(latencies_ms) / len(latencies_ms) - expected_ms
        self._margin.learn_period(len(latencies_ms), off_ms, self._exits_variance)
        if self.budget_ms is not None and len(self._window) and self._window.is_full:
            over_ms = -self._window.credit_ms(horizon=0) / len(self._window)
            room = self._window.capacity
            self._margin.learn_window(over_ms, self._exits_variance, self._horizon, room)

    def _aim(self) -> None:
        """Work out the effective budget and the parameter from the window as it is."""
        if self.budget_ms is None:
            self._effective_ms: float | None = None
            self._promised_ms: float | None = None
            self._chosen = self._in_force = self.frontier[-1]
            return
        budget_point = self._point_for(self.budget_ms)
        self._exits_variance = self.present.slowdown**2 * self.frontier.variance(budget_point)
        worth_ms = self._worth((1 - self.margin) * self.budget_ms)
        # What no sample can use is not left over, and what none can save is not owed.
        self._promised_ms = self._within_reach(worth_ms)
        bound_ms = self.config.max_correction * self.budget_ms
        credit_ms = self._window.credit_ms(self._horizon) / self._horizon
        self._effective_ms = self._within_reach(worth_ms + min(max(credit_ms, -bound_ms), bound_ms))
        self._chosen = self._in_force = self._point_for(self._effective_ms)
        if self._held is not None and self.yields:
            self._in_force = self._held

    def _within_reach(self, latency_ms: float) -> float:
        return min(max(latency_ms, self.floor_ms), self.ceiling_ms)

    def _worth(self, latency_ms: float) -> float:
        """What of a latency the frontier has a use for."""
        cost_ms = self._cost_at(latency_ms)
        worth_ms = self.frontier.useful_budget_ms(cost_ms)
        return latency_ms if worth_ms == cost_ms else self._latency_at(worth_ms)

    def _point_for(self, latency_ms: float) -> FrontierPoint:
        """The point at which samples take so long now; at the ends nothing shifts."""
        if latency_ms <= self.floor_ms:
            return self.frontier[0]
        if latency_ms >= self.ceiling_ms:
            return self.frontier[-1]
        return self.frontier.at_cost(self._cost_at(latency_ms))

    def _cost_at(self, latency_ms: float) -> float:
        """What the frontier must expect, so that samples take so long now."""
        return self.present.cost_at(latency_ms) - self.present.exit_bias_ms

    def _latency_at(self, expected_ms: float) -> float:
        """How long samples take now where the frontier expects so much."""
        return self.present_ms(expected_ms + self.present.exit_bias_ms)
