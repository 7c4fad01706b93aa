"""Keeps the rolling mean latency under the budget by moving the policy's parameter."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from scheduler.frontier import Frontier, FrontierPoint

LONGEST_MS = 1e8  # more than a day: no latency counts for more, so that sums stay finite
SMALLEST_RATIO = 1e-6
MOST_QUEUEING = 20.0  # of overhead, for each millisecond of the mean cost
SHORTEST_MEMORY = 20.0  # samples
# The mean of a window that is steered as below strays by 0.9 sigma sqrt(h) / W (measured on plants
# of independent samples); more than so many times that it strays in less than 1 % of the time.
STRAYING, SURE = 0.9, 2.8
OUTLIER, FURTHEST = 2.0, 6.0  # standard deviations; what is further off is a change, not noise
STILLEST = 0.01  # of what was seen: from no noise at all it can be learned
NOISE_PERIODS = 30.0


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


class _Seen(NamedTuple):
    time_s: float
    latency_ms: float
    exit: int


class BudgetController:
    """Feed-forward from the frontier, corrected by what the window shows.

    Each period it aims at the mean latency that spends the window's remaining credit over the
    coming h samples,

        u = B (1 - m) + sum over those samples that will still be in the window then of
        (B_i (1 - m) - latency_i) / h,   clipped to +-25 % of B,

    where B_i is the budget that was in force when sample i completed. Counting each sample against
    its own budget means that a step of the budget neither punishes nor rewards what was right
    before it. The clip bounds the credit, so nothing winds up.

    The frontier tells which parameter costs u, given three running estimates of how the present
    differs from calibration: the ratio of measured to predicted time (another host), the overhead
    that no exit changes (waiting), and the shift: by how much the exits taken cost more than the
    frontier expects at the parameter in force (other inputs).

    The margin m is what the mean of a window strays by chance: it follows from the noise that is
    seen, and grows as the window shrinks.

    Not thread-safe: one thread tells it everything. Times are seconds of any monotonic clock.

    Args:
        frontier: The policy's frontier at this host's costs.
        budget_ms: The budget, or None for no budget: every sample runs to the end.
        config: Window, period and margins.
    """

    def __init__(
        self, frontier: Frontier, budget_ms: float | None, config: ControllerConfig
    ) -> None:
        self.config = config
        self.budget_ms = budget_ms
        self.ratio = 1.0
        self.overhead_ms = 0.0
        self.waiting_ms = 0.0  # of the overhead
        self.shift_ms = 0.0  # in the frontier's milliseconds
        self._seen: deque[_Seen] = deque()
        self._latency_sum = 0.0
        self._aged = False  # whether samples leave the window by age rather than by count
        self._credits: deque[float] = deque()  # what each of them left of its own budget
        self._additions = 0
        self._period_ms: list[float] = []  # latencies of the period under way
        self._last_update_s: float | None = None
        self._held_point: FrontierPoint | None = None
        self._set_frontier(frontier)
        self._go_to(frontier[len(frontier) // 2])
        self._cost_ms = self._costs_ms[-1]  # of recent samples, in the frontier's milliseconds
        self._variance = 0.0  # of a sample's latency beside what was expected, in ms^2
        self._strayed = 0.0  # mean square of what the window's mean was off what was promised
        self._aim()

    @property
    def effective_budget_ms(self) -> float | None:
        """The mean latency aimed at now, margin taken off; None without a budget."""
        return self._effective_ms

    @property
    def parameter(self) -> float:
        """The policy's parameter in force."""
        return self._parameter

    @property
    def wished(self) -> float:
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
        held = self._held_point
        return held is not None and held.expected_cost_ms > self._chosen.expected_cost_ms

    @property
    def samples(self) -> int:
        """Samples in the window."""
        return len(self._seen)

    @property
    def rolling_latency_ms(self) -> float | None:
        """Mean latency over the window; None before the first sample."""
        return self._latency_sum / len(self._seen) if self._seen else None

    @property
    def exit_rates(self) -> list[float] | None:
        """Share of the window's samples at each exit, (K,); None before the first sample."""
        if not self._seen:
            return None
        return [count / len(self._seen) for count in self._exit_counts]

    @property
    def margin(self) -> float:
        """The share of the budget that is left unspent, so that chance does not pass it."""
        if self.budget_ms is None:
            return 0.0
        straying_ms = max(self._expected_straying_ms, math.sqrt(self._strayed))
        least, most = self.config.margins
        return min(max(SURE * straying_ms / self.budget_ms, least), most)

    def present_ms(self, cost_ms: float) -> float:
        """The latency to expect now if samples cost `cost_ms` in the mean.

        Where they wait for each other, cheaper ones wait less, too.
        """
        waiting_ms = self.waiting_ms + self._queueing * (cost_ms - self._cost_ms)
        fixed_ms = self.overhead_ms - self.waiting_ms
        return cost_ms * self.ratio + fixed_ms + max(waiting_ms, 0.0)

    @property
    def _queueing(self) -> float:
        """How much waiting moves with the mean cost.

        In a queue of utilisation rho a wait w is about c rho / (1 - rho), so that it rises by
        (w / c) (1 + 1 / (1 - rho)) with c, where 1 / (1 - rho) = 1 + w / c.
        """
        share = self.waiting_ms / (self.ratio * self._cost_ms)
        return min(share * (2 + share), MOST_QUEUEING) * self.ratio

    def parameter_for(self, budget_ms: float) -> float:
        """The parameter of a request with a mean-cost wish of its own, at present costs."""
        return self.frontier.at_cost((budget_ms - self.overhead_ms) / self.ratio).parameter

    def set_budget(self, budget_ms: float | None) -> None:
        """Aim at another budget at once; the window stays."""
        self.budget_ms = budget_ms
        self._aim()

    def hold(self, parameter: float | None) -> None:
        """Aim at no point of the frontier cheaper than that of `parameter`; None: at any."""
        self._held_point = None if parameter is None else self.frontier.at_parameter(parameter)
        self._aim()

    def use(self, frontier: Frontier) -> None:
        """Go on with another policy's frontier at this host's costs; the window stays.

        What was held was a parameter of the policy before, and is held no more.
        """
        self._held_point, self.shift_ms = None, 0.0
        self._set_frontier(frontier)
        self._aim()

    def expire(self, now_s: float) -> None:
        """Forget samples that are too old, when none arrive that would push them out."""
        while self._seen and now_s - self._seen[0].time_s > self.config.max_age_s:
            self._forget_oldest()
            self._aged = bool(self._seen)  # of a window that ran empty nothing is known

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
        period = min(self.config.period_samples, max(self._horizon // 3, 1))
        due = len(self._period_ms) >= period or (
            len(self._period_ms) > 0 and now_s - self._last_update_s >= self.config.period_s
        )
        if due:
            self._last_update_s = now_s
            self._learn_noise()
            self._aim()
        return due

    @property
    def _room(self) -> int:
        """Samples that the window holds once it is full."""
        return max(len(self._seen), 1) if self._aged else self.config.window

    @property
    def _horizon(self) -> int:
        return max(1, round(self.config.horizon_share * self._room))

    @property
    def _expected_straying_ms(self) -> float:
        """Standard deviation of the window's mean, if samples are independent."""
        variance = max(self._variance, self.ratio**2 * self._exits_variance)
        return STRAYING * math.sqrt(variance * self._horizon) / self._room

    def _set_frontier(self, frontier: Frontier) -> None:
        self.frontier = frontier
        self._costs_ms: list[float] = frontier.costs_ms.tolist()
        exits = len(self._costs_ms)
        self._exit_counts = [sum(seen.exit == exit for seen in self._seen) for exit in range(exits)]

    def _add(self, sample: Sample, now_s: float) -> None:
        latency_ms = min(sample.latency_ms, LONGEST_MS)
        overhead_ms = min(sample.overhead_ms, latency_ms)
        self._seen.append(_Seen(now_s, latency_ms, sample.exit))
        self._latency_sum += latency_ms
        self._exit_counts[sample.exit] += 1
        self._credits.append(self._promised_ms(latency_ms) - latency_ms)
        if len(self._seen) > self.config.window:
            self._forget_oldest()
            self._aged = False
        self._learn(
            sample.exit, latency_ms - overhead_ms, overhead_ms, min(sample.waiting_ms, overhead_ms)
        )
        self._period_ms.append(latency_ms)
        self._additions += 1
        if self._additions % self.config.window == 0:  # adding and taking away piles up rounding
            self._latency_sum = math.fsum(seen.latency_ms for seen in self._seen)

    def _learn(self, exit: int, compute_ms: float, overhead_ms: float, waiting_ms: float) -> None:
        """Ratio, overhead and shift, by one sample."""
        cost_ms = self._costs_ms[exit]
        step = 1 / max(self.config.ratio_share * self._room, SHORTEST_MEMORY)
        self.ratio = max(self.ratio + step * (compute_ms / cost_ms - self.ratio), SMALLEST_RATIO)
        self._cost_ms += step * (cost_ms - self._cost_ms)
        self.overhead_ms += step * (overhead_ms - self.overhead_ms)
        self.waiting_ms += step * (waiting_ms - self.waiting_ms)
        step = 1 / max(self.config.shift_share * self._room, SHORTEST_MEMORY)
        self.shift_ms += step * (cost_ms - self._expected_cost_ms - self.shift_ms)

    def _learn_noise(self) -> None:
        """The variance of a sample, from how far the period's mean was off what was expected.

        And that of the window's mean itself, which is larger where samples hang together.
        """
        latencies_ms, self._period_ms = self._period_ms, []
        expected_ms = self.present_ms(self._expected_cost_ms + self.shift_ms)
        off_ms = math.fsum(latencies_ms) / len(latencies_ms) - expected_ms
        known = max(self._variance, self.ratio**2 * self._exits_variance, STILLEST * off_ms**2)
        seen = min(len(latencies_ms) * off_ms**2, OUTLIER**2 * known)
        self._variance += (seen - self._variance) / NOISE_PERIODS
        if self.budget_ms is not None and len(self._seen) >= self._room:
            over_ms = max(-math.fsum(self._credits) / len(self._credits), 0.0)
            # Half of the time it strays to the other side, where it does no harm.
            seen = min(2 * over_ms**2, (FURTHEST * self._expected_straying_ms) ** 2)
            self._strayed += (seen - self._strayed) / NOISE_PERIODS

    def _promised_ms(self, latency_ms: float) -> float:
        """A sample's share of the budget, as far as any parameter could have spent or kept it.

        What no sample can use is not left over, and what none can save is not owed. Without a
        budget nothing was promised.
        """
        if self.budget_ms is None:
            return latency_ms
        return min(max(self._worth_ms, self.floor_ms), self.ceiling_ms)

    def _forget_oldest(self) -> None:
        oldest = self._seen.popleft()
        self._credits.popleft()
        self._latency_sum -= oldest.latency_ms
        self._exit_counts[oldest.exit] -= 1

    def _credit_ms(self) -> float:
        """What the samples that stay for the horizon have left of their budgets."""
        leaving = max(len(self._credits) - (self._room - self._horizon), 0)
        return math.fsum(list(self._credits)[leaving:])

    def _aim(self) -> None:
        """Work out the effective budget and the parameter from the window as it is."""
        if self.budget_ms is None:
            self._effective_ms: float | None = None
            self._chosen = self.frontier[-1]
            self._go_to(self._chosen)
            return
        self._worth_ms = self._worth((1 - self.margin) * self.budget_ms)
        bound_ms = self.config.max_correction * self.budget_ms
        correction_ms = min(max(self._credit_ms() / self._horizon, -bound_ms), bound_ms)
        aim_ms = self._worth_ms + correction_ms
        self._effective_ms = min(max(aim_ms, self.floor_ms), self.ceiling_ms)
        self._chosen = self._point_for(self._effective_ms)
        self._go_to(self._held_point if self.yields and self._held_point else self._chosen)

    def _worth(self, latency_ms: float) -> float:
        """What of a latency the frontier has a use for."""
        cost_ms = self._cost_for(latency_ms)
        worth_ms = self.frontier.worth_ms(cost_ms)
        return latency_ms if worth_ms == cost_ms else self.present_ms(worth_ms + self.shift_ms)

    def _point_for(self, latency_ms: float) -> FrontierPoint:
        """The point at which samples take so long now; at the ends nothing shifts."""
        if latency_ms <= self.floor_ms:
            return self.frontier[0]
        if latency_ms >= self.ceiling_ms:
            return self.frontier[-1]
        return self.frontier.at_cost(self._cost_for(latency_ms))

    def _cost_for(self, latency_ms: float) -> float:
        """The mean cost, by the frontier, of samples that take so long now."""
        missing_ms = latency_ms - self._cost_ms * self.ratio - self.overhead_ms
        cost_ms = self._cost_ms + missing_ms / (self.ratio + self._queueing)
        return cost_ms - self.shift_ms

    def _go_to(self, point: FrontierPoint) -> None:
        self._parameter, self._expected_cost_ms = point.parameter, point.expected_cost_ms
        spread_ms = self.frontier.costs_ms - point.expected_cost_ms
        self._exits_variance = float(point.exit_rates @ spread_ms**2)  # of the frontier's costs
