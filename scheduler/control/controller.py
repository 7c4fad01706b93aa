"""The budget controller: adjusts the policy's parameter to keep the mean latency in budget."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from scheduler.control.estimates import CostEstimate
from scheduler.control.margin import Margin
from scheduler.control.traffic import Traffic
from scheduler.control.window import RollingWindow
from scheduler.frontier import Frontier, FrontierPoint

FORGIVING_HALF_LIVES = 3  # of rest, after which overspending is forgiven and savings are lost
LONGEST_QUEUE = 15  # samples for each worker; more of them change nothing
LONGEST_MS = 1e8  # more than a day; longer latencies count as this, so that sums stay finite


@dataclass(frozen=True)
class ControllerConfig:
    """The settings of the controller.

    Attributes:
        window: Completed samples in the rolling mean.
        horizon_share: Share of the window over which credit is spent.
        max_age_s: Samples older than this do not count.
        period_samples: Samples until the next parameter; at most a third of the horizon.
        period_s: Time until the next parameter, if there is at least one sample.
        margins: Smallest and largest share of the budget held back.
        max_correction: Largest share of the budget that credit may add or subtract.
        ratio_share: Memory of the slowdown and the overhead, as a share of the window.
        ratio_s: The same memory in seconds; the shorter one holds.
        half_life_s: Time of rest in which estimates lose half of what they have learned; longer
            where samples are usually far apart.
        shift_share: Memory of the exit bias, as a share of the window.
    """

    window: int = 1000
    horizon_share: float = 0.15
    max_age_s: float = 60.0
    period_samples: int = 50
    period_s: float = 0.25
    margins: tuple[float, float] = (0.005, 0.1)
    max_correction: float = 0.25
    ratio_share: float = 0.1
    ratio_s: float = 1.0
    half_life_s: float = 0.1
    shift_share: float = 0.3

    def __post_init__(self) -> None:
        if self.window < 10:
            raise ValueError(f"window is {self.window} samples; a rolling mean needs at least 10")


class Sample(NamedTuple):
    """One completed sample.

    Attributes:
        exit: The exit it took.
        latency_ms: Its latency, in the measure under control.
        overhead_ms: The part of it that this sample's exit does not change: waiting and decoding
            under `end_to_end`, else 0.
        waiting_ms: The part of the overhead that was waiting for other samples.
    """

    exit: int
    latency_ms: float
    overhead_ms: float = 0.0
    waiting_ms: float = 0.0


class BudgetController:
    """Feed-forward from the frontier, corrected by the samples of the window.

    Each period it targets the mean latency that spends the window's credit over the next h samples,

        u = B (1 - m) + sum over the samples that will still be in the window then of
        (B_i (1 - m) - latency_i) / h,   clipped to +-25 % of B,

    where B_i is the budget at the time that sample i completed. Since each sample counts against
    its own budget, a step of the budget neither punishes nor rewards earlier samples. The clip
    bounds the correction, so that credit cannot wind up.

    The frontier gives the parameter that costs u, with the corrections of `CostEstimate` for the
    present host and inputs. The margin m follows from the observed noise (`Margin`).

    Not thread-safe: a single thread must make all calls. Times are seconds of a monotonic clock.

    Args:
        frontier: The policy's frontier at this host's costs.
        budget_ms: The budget, or None for no budget: every sample runs to the end, or by `hold`.
        config: Window, period and margins.

    Attributes:
        present: The current corrections to the frontier's costs.
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
        self._traffic = Traffic()
        self._exits_variance = 0.0  # of a sample's latency due to its exit alone, in ms^2
        self._period_ms: list[float] = []  # latencies of the current period
        self._last_update_s: float | None = None
        self._floor: FrontierPoint | None = None
        self._held: FrontierPoint | None = None  # without a budget
        self._aim()

    @property
    def effective_budget_ms(self) -> float | None:
        """The current target of the mean latency, after the margin; None without a budget."""
        return self._effective_ms

    @property
    def parameter(self) -> float:
        """The current parameter of the policy."""
        return self._active.parameter

    @property
    def queued_parameters(self) -> tuple[float, ...]:
        """The parameters to use while 1, 2, ... samples wait for each worker; none without budget.

        More samples than there are entries count as the last one. A millisecond delays everyone who
        waits, so what a sample may take beyond the cheapest point is shared with them. Exits follow
        a burst by this before any sample of it has completed.
        """
        if self.budget_ms is None:
            return ()
        least_ms = self._costs_ms[0] if self._floor is None else self._floor.expected_cost_ms
        beyond_ms = max(self._active.expected_cost_ms - least_ms, 0.0)
        costs_ms = [least_ms + beyond_ms / (1 + waiting) for waiting in range(1, LONGEST_QUEUE + 1)]
        return tuple([self.frontier.at_cost(cost_ms).parameter for cost_ms in costs_ms])

    @property
    def unconstrained_parameter(self) -> float:
        """The parameter that the budget alone calls for, without the floor."""
        return self._unconstrained.parameter

    @property
    def floor_ms(self) -> float:
        """Expected latency if all samples leave at exit 0, at present costs."""
        return self.present_ms(self._costs_ms[0])

    @property
    def ceiling_ms(self) -> float:
        """Expected latency if all samples run to the end, at present costs."""
        return self.present_ms(self._costs_ms[-1])

    @property
    def feasible(self) -> bool:
        """Whether the budget can be kept at present costs and the floor does not override it."""
        return self._can_be_kept and not self.yields

    @property
    def _can_be_kept(self) -> bool:
        return self.budget_ms is None or self.budget_ms >= self.floor_ms

    @property
    def yields(self) -> bool:
        """Whether the floor overrides the point that budget or promise call for, a cheaper one."""
        floor = self._floor
        return floor is not None and floor.expected_cost_ms > self._unconstrained.expected_cost_ms

    @property
    def is_current(self) -> bool:
        """Whether the estimates were measured within the last seconds, as of the last call."""
        return self._traffic.is_current

    @property
    def samples(self) -> int:
        """Number of samples in the window."""
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
        """The share of the budget held back so that noise does not exceed it."""
        if self.budget_ms is None:
            return 0.0
        room = self._window.capacity
        return self._margin.share(self.budget_ms, self._exits_variance, self._horizon, room)

    def present_ms(self, cost_ms: float) -> float:
        """Return the expected present latency at a mean cost of the frontier."""
        return self.present.latency_ms(cost_ms)

    def parameter_for(self, budget_ms: float) -> float:
        """Return the parameter for a request with its own budget, at present costs."""
        return self.frontier.at_cost(self.present.cost_of_one(budget_ms)).parameter

    def set_budget(self, budget_ms: float | None) -> None:
        """Change the budget at once; the window stays."""
        self.budget_ms = budget_ms
        self._aim()

    def hold(self, parameter: float | None) -> None:
        """Without a budget use the point of `parameter`; None: every sample runs to the end."""
        self._held = None if parameter is None else self.frontier.at_parameter(parameter)
        self._aim()

    def set_floor(self, parameter: float | None) -> None:
        """Use no point of the frontier cheaper than that of `parameter`; None: use any."""
        self._floor = None if parameter is None else self.frontier.at_parameter(parameter)
        self._aim()

    def set_frontier(self, frontier: Frontier) -> None:
        """Switch to another policy's frontier at this host's costs; the window stays.

        The floor and the point to hold were parameters of the previous policy and are lifted.
        """
        self.frontier = frontier
        self._costs_ms = frontier.costs_ms.tolist()
        self._floor, self._held, self.present.exit_bias_ms = None, None, 0.0
        self._aim()

    def expire(self, now_s: float) -> bool:
        """Let time pass: drop samples that are too old, and let estimates of a rest fade.

        Returns:
            Whether the parameter may have changed.
        """
        rest_s = self._traffic.pass_time(now_s)
        self._window.expire(self._traffic.now_s)
        if rest_s <= 0:
            return False
        half_life_s = max(self._traffic.long_gap_s, self.config.half_life_s)
        keep = 0.5 ** (rest_s / half_life_s)
        self.present.fade(keep)
        if self._traffic.rested_s >= FORGIVING_HALF_LIVES * half_life_s:
            self._window.forgive()
        self._aim()
        return True

    def observe(self, samples: Iterable[Sample], now_s: float) -> bool:
        """Add completed samples.

        Args:
            samples: Samples under the global budget, in order of completion. A sample with a time
                that is NaN or below 0 (a fault of the clock) is ignored.
            now_s: The current time.

        Returns:
            Whether `parameter` was computed anew: a period or a rest has ended.
        """
        valid = [each for each in samples if all(ms >= 0 for ms in each[1:])]  # NaN is not
        faded = self.expire(now_s)
        if valid:
            self._traffic.add(len(valid))
        for sample in valid:
            self._add(sample)
        now_s = self._traffic.now_s
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
        return due or faded

    @property
    def _horizon(self) -> int:
        return max(1, round(self.config.horizon_share * self._window.capacity))

    def _memory(self) -> float:
        """Return the samples over which the slowdown and the overhead are averaged."""
        samples = self.config.ratio_share * self._window.capacity
        gap_s = self._traffic.gap_s
        return min(samples, self.config.ratio_s / gap_s) if gap_s > 0 else samples

    def _add(self, sample: Sample) -> None:
        latency_ms = min(sample.latency_ms, LONGEST_MS)
        overhead_ms = min(sample.overhead_ms, latency_ms)
        waiting_ms = min(sample.waiting_ms, overhead_ms)
        credit_ms = 0.0 if self._target_ms is None else self._target_ms - latency_ms
        self._window.add(self._traffic.now_s, latency_ms, sample.exit, credit_ms)
        self._period_ms.append(latency_ms)
        cost_ms, room = self._costs_ms[sample.exit], self._window.capacity
        compute_ms = latency_ms - overhead_ms
        self.present.update(cost_ms, compute_ms, overhead_ms, waiting_ms, self._memory())
        memory = self.config.shift_share * room
        self.present.learn_shift(cost_ms, self._active.expected_cost_ms, memory)

    def _learn_noise(self) -> None:
        latencies_ms, self._period_ms = self._period_ms, []
        if not self._can_be_kept:
            return  # an overload is no noise
        expected_ms = self._latency_at(self._active.expected_cost_ms)
        off_ms = math.fsum(latencies_ms) / len(latencies_ms) - expected_ms
        self._margin.learn_period(len(latencies_ms), off_ms, self._exits_variance)
        if self.budget_ms is not None and len(self._window) and self._window.is_full:
            over_ms = -self._window.credit_ms(horizon=0) / len(self._window)
            room = self._window.capacity
            self._margin.learn_window(over_ms, self._exits_variance, self._horizon, room)

    def _aim(self) -> None:
        """Compute the effective budget and the parameter from the window."""
        if self.budget_ms is None:
            self._effective_ms: float | None = None
            self._target_ms: float | None = None
            self._unconstrained = self._active = self._held or self.frontier[-1]
            if self._floor is not None and self.yields:
                self._active = self._floor
            return
        budget_point = self._point_for(self.budget_ms)
        self._exits_variance = self.present.slowdown**2 * self.frontier.variance(budget_point)
        worth_ms = self._worth((1 - self.margin) * self.budget_ms)
        # Budget that no sample can use is no credit, excess that none can avoid no debt.
        self._target_ms = self._within_reach(worth_ms) if self._can_be_kept else None
        bound_ms = self.config.max_correction * self.budget_ms
        credit_ms = self._window.credit_ms(self._horizon) / self._horizon
        self._effective_ms = self._within_reach(worth_ms + min(max(credit_ms, -bound_ms), bound_ms))
        self._unconstrained = self._active = self._point_for(self._effective_ms)
        if self._floor is not None and self.yields:
            self._active = self._floor

    def _within_reach(self, latency_ms: float) -> float:
        return min(max(latency_ms, self.floor_ms), self.ceiling_ms)

    def _worth(self, latency_ms: float) -> float:
        """Return the part of a latency that is worth spending."""
        cost_ms = self._cost_at(latency_ms)
        worth_ms = self.frontier.useful_budget_ms(cost_ms)
        return latency_ms if worth_ms == cost_ms else self._latency_at(worth_ms)

    def _point_for(self, latency_ms: float) -> FrontierPoint:
        """Return the point with this latency at present costs; the ends are never shifted."""
        if latency_ms <= self.floor_ms:
            return self.frontier[0]
        if latency_ms >= self.ceiling_ms:
            return self.frontier[-1]
        return self.frontier.at_cost(self._cost_at(latency_ms))

    def _cost_at(self, latency_ms: float) -> float:
        """Return the frontier's expected cost that leads to a present latency."""
        return self.present.cost_at(latency_ms) - self.present.exit_bias_ms

    def _latency_at(self, expected_ms: float) -> float:
        """Return the present latency where the frontier expects a cost."""
        return self.present_ms(expected_ms + self.present.exit_bias_ms)
