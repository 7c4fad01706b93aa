"""Keeps the rolling mean latency under the budget by moving the policy's parameter."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from scheduler.frontier import Frontier

REFERENCE_WINDOW = 1000


@dataclass(frozen=True)
class ControllerConfig:
    """How the controller looks and steps.

    Attributes:
        window: Completed samples in the rolling mean.
        horizon_share: Share of the window over which credit is spent (about 300 of 1000).
        max_age_s: No sample older than this counts.
        period_samples: A new parameter after so many samples ...
        period_s: ... or after so much time with at least one sample.
        margin: Share of the budget left unspent at a window of 1000; it grows as the window
            shrinks.
        max_correction: Largest share of the budget that credit may add or take.
        ratio_samples: Memory of the measured/predicted ratio, in samples.
    """

    window: int = 1000
    horizon_share: float = 0.3
    max_age_s: float = 60.0
    period_samples: int = 50
    period_s: float = 0.25
    margin: float = 0.02
    max_correction: float = 0.25
    ratio_samples: float = 200.0

    def __post_init__(self) -> None:
        if self.window < 10:
            raise ValueError(f"window is {self.window} samples; a rolling mean needs at least 10")

    @property
    def window_margin(self) -> float:
        """The margin at this window: the mean of fewer samples wanders more."""
        return self.margin * math.sqrt(max(1.0, REFERENCE_WINDOW / self.window))


class Sample(NamedTuple):
    """One completed sample.

    Attributes:
        exit: The exit it took.
        latency_ms: In the measure under control.
        overhead_ms: The part of it that no exit changes: waiting and decoding under `end_to_end`,
            else 0.
    """

    exit: int
    latency_ms: float
    overhead_ms: float = 0.0


class _Seen(NamedTuple):
    time_s: float
    latency_ms: float
    exit: int


class BudgetController:
    """Feed-forward from the frontier, corrected by what the window shows.

    Each period it aims at the mean cost that spends the window's remaining credit over the coming
    samples,

        u = B (1 - m) + sum over the newest W - h samples of (B_i (1 - m) - latency_i) / h,
        clipped to +-25 % of B,

    where B_i is the budget that was in force when sample i completed, and asks the frontier for the
    parameter whose expected cost, times the measured/predicted ratio and plus the overhead, is u.
    With a constant budget this is the law u = (W B (1 - m) - cost of the newest W - h) / h.
    Counting each sample against its own budget means that a step of the budget neither punishes nor
    rewards what was right before it. The clip bounds the credit, so nothing winds up.

    Not thread-safe: one thread tells it everything. Times are seconds of any monotonic clock.

    Args:
        frontier: The policy's frontier at this host's costs.
        budget_ms: The budget, or None for no budget: every sample runs to the end.
        config: Window, period and margins.
    """

    def __init__(
        self, frontier: Frontier, budget_ms: float | None, config: ControllerConfig
    ) -> None:
        self.frontier = frontier
        self.config = config
        self.budget_ms = budget_ms
        self.ratio = 1.0
        self.overhead_ms = 0.0
        self._costs_ms: list[float] = frontier.costs_ms.tolist()
        self._share = 1 - config.window_margin  # of the budget, that is aimed at
        self._horizon = max(1, round(config.horizon_share * config.window))
        self._seen: deque[_Seen] = deque()
        self._latency_sum = 0.0
        self._exit_counts = [0] * len(frontier.costs_ms)
        # Of the newest W - h samples, what each left of its own budget.
        self._credits: deque[float] = deque()
        self._credit_sum = 0.0
        self._additions = 0
        self._due_samples = 0
        self._last_update_s: float | None = None
        self._effective_ms = budget_ms
        self._held: float | None = None
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
    def floor_ms(self) -> float:
        """Expected latency when all leave at exit 0, at present costs."""
        return self.present_ms(self._costs_ms[0])

    @property
    def ceiling_ms(self) -> float:
        """Expected latency when all run to the end, at present costs."""
        return self.present_ms(self._costs_ms[-1])

    @property
    def feasible(self) -> bool:
        """Whether the budget can be kept at present costs."""
        return self.budget_ms is None or self.budget_ms >= self.floor_ms

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

    def present_ms(self, cost_ms: float) -> float:
        """The latency to expect now where the frontier says `cost_ms`."""
        return cost_ms * self.ratio + self.overhead_ms

    def set_budget(self, budget_ms: float | None) -> None:
        """Aim at another budget at once; the window stays."""
        self.budget_ms = budget_ms
        self._aim()

    def hold(self, parameter: float | None) -> None:
        """Aim at no point of the frontier cheaper than that of `parameter`; None: at any."""
        self._held = parameter
        self._aim()

    def use(self, frontier: Frontier) -> None:
        """Go on with another policy's frontier at this host's costs; the window stays.

        What was held was a parameter of the policy before, and is held no more.
        """
        self.frontier = frontier
        self._costs_ms = frontier.costs_ms.tolist()
        self._held = None
        self._aim()

    @property
    def yields(self) -> bool:
        """Whether the budget gives way to what is held: without it a cheaper point would do."""
        if self._held is None or self._effective_ms is None:
            return False
        held = self.frontier.at_parameter(self._held).expected_cost_ms
        return held > self.frontier.at_cost(self._wish_ms).expected_cost_ms

    def expire(self, now_s: float) -> None:
        """Forget samples that are too old, when none arrive that would push them out."""
        while self._seen and now_s - self._seen[0].time_s > self.config.max_age_s:
            self._forget_oldest()
        while len(self._credits) > len(self._seen):
            self._credit_sum -= self._credits.popleft()

    def observe(self, samples: Iterable[Sample], now_s: float) -> bool:
        """Take completed samples in.

        Args:
            samples: Samples under the global budget, in order of completion.
            now_s: The time.

        Returns:
            Whether a period ended, so that `parameter` was worked out anew.
        """
        for sample in samples:
            self._add(sample, now_s)
            self._due_samples += 1
        self.expire(now_s)
        if self._last_update_s is None:
            self._last_update_s = now_s
        due = self._due_samples >= self.config.period_samples or (
            self._due_samples > 0 and now_s - self._last_update_s >= self.config.period_s
        )
        if due:
            self._due_samples = 0
            self._last_update_s = now_s
            self._aim()
        return due

    def parameter_for(self, budget_ms: float) -> float:
        """The parameter of a request with a mean-cost wish of its own, at present costs."""
        return self.frontier.at_cost((budget_ms - self.overhead_ms) / self.ratio).parameter

    def _add(self, sample: Sample, now_s: float) -> None:
        self._seen.append(_Seen(now_s, sample.latency_ms, sample.exit))
        self._latency_sum += sample.latency_ms
        self._exit_counts[sample.exit] += 1
        if len(self._seen) > self.config.window:
            self._forget_oldest()
        self._credits.append(self._promised_ms(sample) - sample.latency_ms)
        self._credit_sum += self._credits[-1]
        if len(self._credits) > self.config.window - self._horizon:
            self._credit_sum -= self._credits.popleft()
        predicted_ms = self._costs_ms[sample.exit]
        step = 1 / self.config.ratio_samples
        self.ratio += step * ((sample.latency_ms - sample.overhead_ms) / predicted_ms - self.ratio)
        self.overhead_ms += step * (sample.overhead_ms - self.overhead_ms)
        self._additions += 1
        if self._additions % self.config.window == 0:
            self._sum_anew()

    def _promised_ms(self, sample: Sample) -> float:
        """The sample's share of the budget, as far as any parameter could have spent or kept it.

        What no sample can use is not left over, and what none can save is not owed. Without a
        budget nothing was promised.
        """
        if self.budget_ms is None:
            return sample.latency_ms
        return min(max(self._share * self.budget_ms, self.floor_ms), self.ceiling_ms)

    def _forget_oldest(self) -> None:
        oldest = self._seen.popleft()
        self._latency_sum -= oldest.latency_ms
        self._exit_counts[oldest.exit] -= 1

    def _sum_anew(self) -> None:
        """Once a window: adding and taking away for days would pile up rounding errors."""
        self._latency_sum = math.fsum(seen.latency_ms for seen in self._seen)
        self._credit_sum = math.fsum(self._credits)

    def _aim(self) -> None:
        """Work out the effective budget and the parameter from the window as it is."""
        if self.budget_ms is None:
            self._effective_ms = None
            self._parameter = self.frontier[-1].parameter
            return
        bound = self.config.max_correction * self.budget_ms
        correction = min(max(self._credit_sum / self._horizon, -bound), bound)
        aim = self._share * self.budget_ms + correction
        self._effective_ms = min(max(aim, self.floor_ms), self.ceiling_ms)
        self._wish_ms = (self._effective_ms - self.overhead_ms) / self.ratio
        self._parameter = self.frontier.at_cost(self._wish_ms).parameter
        if self.yields:
            assert self._held is not None, "only something held is yielded to"
            self._parameter = self.frontier.at_parameter(self._held).parameter
