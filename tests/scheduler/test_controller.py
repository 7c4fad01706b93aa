from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.baselines import geometric_distribution
from scheduler.controller import BudgetController, ControllerConfig, Sample
from scheduler.frontier import Frontier

RESNET56_MS = (2.31, 4.15, 4.93)  # CIFAR-10 in the paper
WIDE_MS = (1.0, 2.0, 4.0)  # a sample's cost says little about the mean of the next ones
SETTLING = 300  # samples that the controller may take to settle beyond one window


@lru_cache
def frontier(costs_ms: tuple[float, ...] = WIDE_MS) -> Frontier:
    """Geometric exits between the first and the last cost, with the budget as the parameter."""
    costs = np.array(costs_ms)
    budgets = np.linspace(costs[0], costs[-1], 400)
    rates = np.stack([geometric_distribution(costs, budget) for budget in budgets])
    return Frontier(budgets, rates, rates @ np.array([0.6, 0.8, 0.9]), costs)


def part_way(costs_ms: tuple[float, ...], share: float) -> float:
    """The budget so far from floor to ceiling."""
    return costs_ms[0] + share * (costs_ms[-1] - costs_ms[0])


TIGHT_MS, LOOSE_MS = part_way(RESNET56_MS, 0.3), part_way(RESNET56_MS, 0.8)


class Moment(NamedTuple):
    """Right after one sample: what the controller says and which budget was in force."""

    exit: int
    rolling_ms: float
    budget_ms: float | None


@dataclass
class Plant:
    """A toy host: exits drawn at the controller's parameter, each latency a little random."""

    controller: BudgetController
    slowdown: float = 1.0
    overhead_ms: float = 0.0
    samples_per_s: float = 200.0
    now_s: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def run(self, samples: int) -> list[Moment]:
        return [self._one() for _ in range(samples)]

    def _one(self) -> Moment:
        curve = self.controller.frontier
        rates = curve.at_parameter(self.controller.parameter).exit_rates
        exit = int(np.searchsorted(np.cumsum(rates)[:-1], self.rng.uniform(), side="right"))
        compute_ms = curve.costs_ms[exit] * self.slowdown * self.rng.uniform(0.9, 1.1)
        overhead_ms = self.overhead_ms * self.rng.uniform(0.5, 1.5)
        self.now_s += 1 / self.samples_per_s
        sample = Sample(exit, compute_ms + overhead_ms, overhead_ms)
        self.controller.observe([sample], self.now_s)
        rolling_ms = self.controller.rolling_latency_ms
        assert rolling_ms is not None
        return Moment(exit, rolling_ms, self.controller.budget_ms)


def plant(
    budget_ms: float | None, costs_ms: tuple[float, ...] = RESNET56_MS, window: int = 1000
) -> Plant:
    # The tests of the law count in samples: nothing may grow too old under them.
    config = ControllerConfig(window=window, max_age_s=1e9)
    return Plant(BudgetController(frontier(costs_ms), budget_ms, config))


def rolling(moments: list[Moment]) -> NDArray[np.float64]:
    return np.array([moment.rolling_ms for moment in moments])


def assert_steady(moments: list[Moment], budget_ms: float, under_use: float) -> None:
    """Nearly always at or under the budget, and near it."""
    means = rolling(moments)
    assert (means > budget_ms).mean() <= 0.01
    assert means.max() <= 1.01 * budget_ms
    assert means.mean() >= (1 - under_use) * budget_ms


# The loop closed


@pytest.mark.parametrize(("window", "under_use"), [(1000, 0.05), (200, 0.08)])
@pytest.mark.parametrize(("before", "after"), [(LOOSE_MS, TIGHT_MS), (TIGHT_MS, LOOSE_MS)])
def test_steps_of_the_budget_settle_under_it_and_near_it(
    window: int, under_use: float, before: float, after: float
) -> None:
    host = plant(before, window=window)
    host.run(2 * window)
    host.controller.set_budget(after)
    host.run(window + SETTLING)
    assert_steady(host.run(5000), after, under_use)


def test_exits_far_apart_in_cost_keep_excursions_small() -> None:
    """The mean of a window of these wanders by more than the margin: above 0.4 to 3 % of the time.

    Measured over 30,000 samples; the promise of 1 % is one of exits as near as most networks' are.
    """
    budget = part_way(WIDE_MS, 0.3)
    means = rolling(plant(budget, WIDE_MS).run(10_000))[1000 + SETTLING :]
    assert (means > budget).mean() <= 0.05
    assert means.max() <= 1.02 * budget
    assert means.mean() >= 0.95 * budget


def test_a_fresh_start_never_strays_far_above_the_budget() -> None:
    moments = plant(TIGHT_MS).run(3000)
    assert rolling(moments)[300:].max() <= 1.05 * TIGHT_MS
    assert_steady(moments[1300:], TIGHT_MS, 0.05)


@pytest.mark.parametrize("window", [1000, 200])
def test_a_slower_host_and_its_recovery_are_followed(window: int) -> None:
    budget = 4.0
    host = plant(budget, window=window)
    host.run(2 * window)
    for slowdown in (1.6, 1.0):
        host.slowdown = slowdown
        transient = rolling(host.run(window + SETTLING))
        assert transient.max() <= (1.05 if window == 1000 else 1.2) * budget
        assert_steady(host.run(3000), budget, 0.05 if window == 1000 else 0.08)
        assert host.controller.ratio == pytest.approx(slowdown, rel=0.02)
        assert host.controller.floor_ms == pytest.approx(2.31 * slowdown, rel=0.02)
        assert host.controller.ceiling_ms == pytest.approx(4.93 * slowdown, rel=0.02)


def test_overhead_that_no_exit_changes_is_met_by_leaving_earlier() -> None:
    host = plant(4.0)
    exits_before = np.mean([moment.exit for moment in host.run(3000)])
    host.overhead_ms = 1.0
    host.run(1000 + SETTLING)
    moments = host.run(3000)
    assert_steady(moments, 4.0, 0.05)
    assert np.mean([moment.exit for moment in moments]) < exits_before - 0.3
    assert host.controller.overhead_ms == pytest.approx(1.0, rel=0.1)
    # The overhead is not mistaken for a slower host.
    assert host.controller.ratio == pytest.approx(1.0, rel=0.02)
    assert host.controller.floor_ms == pytest.approx(3.31, rel=0.05)


def test_budgets_that_alternate_are_kept_on_average() -> None:
    host = plant(TIGHT_MS)
    moments = []
    for _ in range(6):
        for budget in (LOOSE_MS, TIGHT_MS):
            host.controller.set_budget(budget)
            moments += host.run(1000)
    # Sample by sample means are not known from rolling ones, window by window they are.
    spent = rolling(moments)[1999::1000].mean()
    promised = (LOOSE_MS + TIGHT_MS) / 2
    assert 0.93 * promised <= spent <= promised


# The ends


def test_without_a_budget_everything_runs_to_the_end() -> None:
    host = plant(None)
    assert {moment.exit for moment in host.run(500)} == {2}
    assert host.controller.effective_budget_ms is None
    assert host.controller.feasible


def test_taking_the_budget_away_opens_at_once_and_giving_it_back_closes() -> None:
    host = plant(TIGHT_MS)
    host.run(500)
    host.controller.set_budget(None)
    assert {moment.exit for moment in host.run(500)} == {2}
    host.controller.set_budget(TIGHT_MS)
    host.run(1000 + SETTLING)
    assert_steady(host.run(2000), TIGHT_MS, 0.05)


@pytest.mark.parametrize("slowdown", [1.0, 1.6])
def test_a_budget_above_the_ceiling_lets_everything_run_to_the_end(slowdown: float) -> None:
    host = plant(1.1 * 4.93 * slowdown)
    host.slowdown = slowdown
    host.run(2000)
    assert {moment.exit for moment in host.run(1000)} == {2}
    assert host.controller.feasible


def test_an_infeasible_budget_sends_everything_out_at_the_first_exit() -> None:
    host = plant(0.8, WIDE_MS)
    assert not host.controller.feasible
    assert {moment.exit for moment in host.run(500)} == {0}
    assert not host.controller.feasible


def test_a_budget_becomes_infeasible_on_a_slow_host_and_feasible_again() -> None:
    host = plant(1.5, WIDE_MS)
    host.run(1000)
    assert host.controller.feasible
    host.slowdown = 1.8
    host.run(2000)
    assert not host.controller.feasible
    assert {moment.exit for moment in host.run(300)} == {0}
    host.slowdown = 1.0
    host.run(2000)
    assert host.controller.feasible
    assert max(moment.exit for moment in host.run(1000)) > 0


def test_overhead_alone_can_make_a_budget_infeasible() -> None:
    host = plant(2.0, WIDE_MS)
    host.overhead_ms = 1.5
    assert {moment.exit for moment in host.run(2000)[1000:]} == {0}
    assert not host.controller.feasible


# The window


def controller(budget_ms: float | None = 2.0, **config: float) -> BudgetController:
    return BudgetController(frontier(), budget_ms, ControllerConfig(**config))  # type: ignore[arg-type]


def test_before_the_first_sample_nothing_is_known_and_the_frontier_is_believed() -> None:
    fresh = controller(2.0)
    assert (fresh.samples, fresh.rolling_latency_ms, fresh.exit_rates) == (0, None, None)
    assert (fresh.floor_ms, fresh.ceiling_ms) == (1.0, 4.0)
    assert fresh.effective_budget_ms == pytest.approx(2.0 * 0.98)
    assert fresh.parameter == pytest.approx(1.96, abs=0.01)


def test_the_window_holds_the_newest_samples() -> None:
    full = controller(window=10)
    full.observe([Sample(0, 9.0)] * 5 + [Sample(0, 1.0)] * 6 + [Sample(2, 4.0)] * 4, 0.0)
    assert full.samples == 10
    assert full.rolling_latency_ms == pytest.approx(2.2)
    assert full.exit_rates == pytest.approx([0.6, 0.0, 0.4])


def test_samples_expire_once_older_than_allowed() -> None:
    aging = controller(max_age_s=60.0)
    aging.observe([Sample(0, 1.0)], 0.0)
    aging.observe([Sample(2, 4.0)], 30.0)
    aging.expire(60.0)
    assert aging.samples == 2
    aging.expire(60.1)
    assert (aging.samples, aging.rolling_latency_ms) == (1, 4.0)
    aging.expire(1000.0)
    assert (aging.samples, aging.rolling_latency_ms, aging.exit_rates) == (0, None, None)


def test_arriving_samples_push_old_ones_out_too() -> None:
    aging = controller(max_age_s=60.0)
    aging.observe([Sample(0, 1.0)] * 3, 0.0)
    aging.observe([Sample(1, 2.0)], 100.0)
    assert (aging.samples, aging.rolling_latency_ms) == (1, 2.0)


def test_expired_overspending_is_forgiven() -> None:
    aging = controller(2.0, max_age_s=60.0, ratio_samples=1e12)
    aging.observe([Sample(2, 4.0)] * 500, 0.0)
    assert aging.parameter < 1.7
    aging.observe([Sample(0, 1.0)], 100.0)
    assert aging.parameter == pytest.approx(1.96, abs=0.02)


def test_a_period_ends_after_its_samples_or_its_time() -> None:
    ticking = controller(period_samples=3, period_s=1.0)
    told = [ticking.observe([Sample(0, 1.0)], now_s) for now_s in (0.0, 0.1, 0.2, 0.3, 0.5, 1.2)]
    assert told == [False, False, True, False, False, True]
    assert not ticking.observe([], 50.0)


def test_a_new_budget_is_aimed_at_before_any_sample() -> None:
    stepped = controller(2.0)
    stepped.set_budget(3.0)
    assert stepped.parameter == pytest.approx(2.94, abs=0.01)


@pytest.mark.parametrize(("budget", "effective"), [(0.5, 1.0), (9.0, 4.0)])
def test_no_mean_is_aimed_at_that_no_exit_gives(budget: float, effective: float) -> None:
    assert controller(budget).effective_budget_ms == effective


def test_a_smaller_window_keeps_a_larger_margin() -> None:
    margins = [ControllerConfig(window=window).window_margin for window in (4000, 1000, 250)]
    assert margins == pytest.approx([0.02, 0.02, 0.04])


def test_a_window_too_small_for_a_mean_is_refused() -> None:
    with pytest.raises(ValueError, match="window is 9 samples"):
        ControllerConfig(window=9)


def test_a_request_with_its_own_budget_gets_present_costs() -> None:
    slow = controller(None)
    slow.observe([Sample(0, 2.5, 0.5)] * 3000, 0.0)  # twice as slow, and half a ms of overhead
    assert slow.parameter_for(4.5) == pytest.approx(2.0, abs=0.01)
    assert slow.parameter_for(0.1) == frontier().parameters[0]
    assert slow.parameter_for(99.0) == frontier().parameters[-1]


# Whatever happens


def observations() -> st.SearchStrategy[Callable[[BudgetController, float], float]]:
    """Steps that take a controller and the time, do something, and return the time after."""

    def observe(
        exits: list[int], latency_ms: float, overhead_share: float, wait_s: float
    ) -> Callable[[BudgetController, float], float]:
        def step(target: BudgetController, now_s: float) -> float:
            samples = [Sample(k, latency_ms + k, overhead_share * latency_ms) for k in exits]
            target.observe(samples, now_s + wait_s)
            return now_s + wait_s

        return step

    def change(budget_ms: float | None) -> Callable[[BudgetController, float], float]:
        def step(target: BudgetController, now_s: float) -> float:
            target.set_budget(budget_ms)
            return now_s

        return step

    def wait(wait_s: float) -> Callable[[BudgetController, float], float]:
        def step(target: BudgetController, now_s: float) -> float:
            target.expire(now_s + wait_s)
            return now_s + wait_s

        return step

    return st.one_of(
        st.builds(
            observe,
            st.lists(st.integers(0, 2), max_size=40),
            st.floats(0.0, 1e4),
            st.floats(0.0, 1.0),
            st.sampled_from([0.0, 0.01, 1.0, 59.0, 100.0]),
        ),
        st.builds(change, st.none() | st.floats(1e-3, 1e5)),
        st.builds(wait, st.sampled_from([0.0, 1.0, 30.0, 1e6])),
    )


@settings(deadline=None, max_examples=150)
@given(st.lists(observations(), max_size=25), st.sampled_from([10, 37, 1000]))
def test_nothing_drives_the_parameter_off_the_frontier(
    steps: list[Callable[[BudgetController, float], float]], window: int
) -> None:
    target, now_s = controller(2.0, window=window), 0.0
    for step in steps:
        now_s = step(target, now_s)
        assert frontier().parameters[0] <= target.parameter <= frontier().parameters[-1]
        if target.budget_ms is not None:
            effective_ms = target.effective_budget_ms
            assert effective_ms is not None
            assert np.isfinite(effective_ms)
        assert np.isfinite([target.floor_ms, target.ceiling_ms]).all()
        assert target.samples <= window
        if target.exit_rates is not None:
            assert sum(target.exit_rates) == pytest.approx(1)
            assert min(target.exit_rates) >= 0


def windows(
    batches: list[tuple[list[float], float]], window: int
) -> Iterator[tuple[list[float], float, list[float]]]:
    """Batches of latencies with their times, and what a plain window of 60 s holds after each."""
    kept: list[tuple[float, float]] = []
    now_s = 0.0
    for latencies_ms, wait_s in batches:
        now_s += wait_s
        kept = [*kept, *((now_s, latency) for latency in latencies_ms)][-window:]
        kept = [(time_s, latency) for time_s, latency in kept if now_s - time_s <= 60.0]
        yield latencies_ms, now_s, [latency for _, latency in kept]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(0.01, 1e3), max_size=30), st.sampled_from([0.0, 0.5, 20.0, 61.0])
        ),
        max_size=20,
    ),
    st.sampled_from([10, 25, 1000]),
)
def test_the_rolling_mean_is_the_plain_mean_of_the_window(
    batches: list[tuple[list[float], float]], window: int
) -> None:
    target = controller(window=window)
    for latencies_ms, now_s, kept in windows(batches, window):
        target.observe([Sample(0, latency) for latency in latencies_ms], now_s)
        assert target.samples == len(kept)
        expected = pytest.approx(np.mean(kept)) if kept else None
        assert target.rolling_latency_ms == expected


def test_rounding_errors_of_large_latencies_do_not_stay() -> None:
    target = controller(window=10)
    target.observe([Sample(0, 1e15)] * 10, 0.0)
    target.observe([Sample(0, 0.1)] * 30, 0.0)
    assert target.rolling_latency_ms == pytest.approx(0.1)


@pytest.mark.parametrize("before", [None, 1e6, 1e308, 1e-6])
def test_budgets_that_no_sample_could_use_or_keep_leave_no_credit(before: float | None) -> None:
    shares = np.linspace(0, 1, 101)
    frontier = Frontier(
        parameters=1 + shares,
        exit_rates=np.stack([1 - shares, shares], 1),
        expected_accuracy=0.8 + 0.1 * shares,
        costs_ms=np.array([1.0, 2.0]),
    )
    controller, now_s = BudgetController(frontier, before, ControllerConfig()), 0.0
    rng = np.random.default_rng(0)

    def send(count: int) -> float:
        nonlocal now_s
        total = 0.0
        for _ in range(count):
            exit = int(rng.random() < frontier.at_parameter(controller.parameter).exit_rates[1])
            now_s += 0.002
            controller.observe([Sample(exit, 1.0 + exit)], now_s)
            total += 1.0 + exit
        return total / count

    send(3000)
    controller.set_budget(1.5)
    assert send(1000) == pytest.approx(1.5 * 0.98, rel=0.02)
