"""Deadlines: what is expected, and what an engine in virtual time makes of them."""

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest

from benchmarks.virtual_time import VirtualTime
from models.runtime.replay_backend import ReplayBackend
from models.stage_costs import StageCosts
from profiling.simulation.arrivals import poisson
from scheduler.baselines import ConfidencePolicy
from scheduler.thresholds import ThresholdTable
from server.engine.deadlines import RECENT_S, REFRESH_S, TRIAL_S, Deadlines
from server.engine.engine import Engine
from server.engine.request import InferenceRequest, Prediction
from server.errors import DeadlineExceeded

COSTS = StageCosts((1, 4), np.array([[1.0, 2.5], [10.0, 16.0], [10.0, 16.0]]))
CORE = StageCosts.of_exits([1.0, 1.75, 2.5])
DEVICE = StageCosts.of_exits([4.0, 8.0, 12.0], free_rows=16)
CLASSES, RECORDED = 4, 1000


def row(stage: int, *, deadline_s: float | None = None, ready_s: float = 0.0) -> InferenceRequest:
    made = InferenceRequest((), deadline_s=deadline_s)
    made.stage, made.ready_s = stage, ready_s
    return made


def leaves(deadlines: Deadlines, left_s: float, now_s: float = 0.0, stage: int = 0) -> bool:
    return deadlines.would_miss_next_exit(row(stage, deadline_s=now_s + left_s), now_s)


@pytest.mark.parametrize(("max_batch", "expected_s"), [(1, 0.010), (4, 0.016), (3, 0.014)])
def test_before_any_batch_the_costs_of_the_largest_batch_are_expected(
    max_batch: int, expected_s: float
) -> None:
    assert leaves(Deadlines(3, COSTS, max_batch), expected_s - 1e-6)
    assert not leaves(Deadlines(3, COSTS, max_batch), expected_s + 1e-6)


def test_a_row_without_a_deadline_never_has_to_leave() -> None:
    assert not Deadlines(3, COSTS, 1).would_miss_next_exit(row(0), 1e9)


def test_where_nothing_is_known_one_row_a_second_may_try_and_whoever_has_longer() -> None:
    deadlines, short_s = Deadlines(3, COSTS, 1), 0.9 * TRIAL_S
    assert not leaves(deadlines, short_s)
    assert leaves(deadlines, short_s, 0.5 * TRIAL_S)
    assert not leaves(deadlines, 1.1 * TRIAL_S, 0.5 * TRIAL_S)
    assert not leaves(deadlines, short_s, 0.5 * TRIAL_S, stage=1)
    assert not leaves(deadlines, short_s, 1.1 * TRIAL_S)


def test_the_longest_wait_of_a_batch_counts_for_its_stage() -> None:
    deadlines = Deadlines(3, COSTS, 4)
    deadlines.stages[1].times.append((1.0, 0.3))
    assert leaves(deadlines, 0.29, 1.0)
    assert not leaves(deadlines, 0.31, 1.0)


def test_the_way_to_the_answer_counts_too() -> None:
    deadlines = Deadlines(3, COSTS, 4)
    deadlines.stages[1].times.append((1.0, 0.1))
    deadlines.delivery.times.append((1.0, 0.2))
    assert leaves(deadlines, 0.29, 1.0)
    assert not leaves(deadlines, 0.31, 1.0)


def test_what_was_slow_once_is_tried_again() -> None:
    deadlines = Deadlines(3, COSTS, 4)
    deadlines.stages[1].times.append((60.0, 60.0))
    assert leaves(deadlines, 1.0, 60.0)
    later_s = 60.0 + RECENT_S + REFRESH_S + 0.1
    assert not leaves(deadlines, 0.1, later_s)
    assert leaves(deadlines, 0.1, later_s)
    deadlines.stages[1].times.append((later_s + 0.02, 0.02))
    assert not leaves(deadlines, 0.1, later_s + 0.03)


def is_hopeless(deadlines: Deadlines, left_s: float, rows: int = 1, now_s: float = 0.0) -> bool:
    return deadlines.would_miss_first_exit(row(0, deadline_s=now_s + left_s), now_s, rows)


def test_a_batch_is_expected_to_reach_the_first_exit_at_its_cost() -> None:
    deadlines = Deadlines(3, COSTS, 4)
    for rows, cost_s in ((1, 0.001), (2, 0.0015), (4, 0.0025)):
        assert is_hopeless(deadlines, cost_s - 1e-6, rows)
        assert not is_hopeless(deadlines, cost_s + 1e-6, rows)
    assert not deadlines.would_miss_first_exit(row(0), 1e9, 1)
    assert not is_hopeless(Deadlines(3, None, 4), 1e-9)
    assert is_hopeless(Deadlines(3, None, 4), 0.0)


def test_a_slower_host_reaches_the_first_exit_later_until_that_is_long_ago() -> None:
    deadlines = Deadlines(3, COSTS, 4)
    for took_s in (0.004, 0.005, 0.006):  # for 0.0025 at its cost
        deadlines.note_first_run(4, 1.0, took_s)
    assert is_hopeless(deadlines, 0.0019, 1, 1.0) and not is_hopeless(deadlines, 0.0021, 1, 1.0)
    later_s = 1.0 + RECENT_S + REFRESH_S + 0.1
    assert not is_hopeless(deadlines, 0.0011, 1, later_s)


class Seen(NamedTuple):
    """What became of rows, in their order."""

    outcomes: list[InferenceRequest]
    latency_ms: np.ndarray

    def in_time(self, among: np.ndarray, deadline_ms: float) -> float:
        """Share of rows that were answered and not later."""
        answered = [isinstance(each.result, Prediction) for each in self.outcomes]
        return float((answered & (self.latency_ms <= deadline_ms))[among].mean())

    def exits(self, among: np.ndarray) -> np.ndarray:
        """Of those answered."""
        outcomes = [self.outcomes[place].result for place in np.flatnonzero(among)]
        return np.array([each.exit for each in outcomes if isinstance(each, Prediction)])


def run(
    costs: StageCosts, max_batch: int, rows: list[InferenceRequest], arrivals_s: np.ndarray
) -> Seen:
    """An engine of one worker, a third of whose rows leave at each exit, in virtual time."""
    time, rng = VirtualTime(), np.random.default_rng(0)
    seen: dict[object, tuple[InferenceRequest, float]] = {}
    confidences = np.random.default_rng(1).uniform(0.5, 1.0, (3, RECORDED))
    log_probs = np.log(np.stack([confidences, *[(1 - confidences) / 3] * 3], axis=2))

    def sleep(seconds: float) -> None:
        time.sleep(seconds * float(np.exp(0.2 * rng.standard_normal())))

    def on_batch(completions: list[InferenceRequest]) -> None:
        for each in completions:
            assert each.request_id not in seen, "completed twice"
            seen[each.request_id] = each, 1e3 * (time.clock() - each.arrived_s)

    table = ThresholdTable(
        np.array([1.0, 2.0]),
        np.array([[5 / 6, 0.75, -np.inf], [np.inf, np.inf, -np.inf]]),
    )
    engine = Engine(
        ReplayBackend(log_probs, costs, sleep, clock=lambda: 0.0),
        ConfidencePolicy(table, "maxprob"),
        1.0,
        workers=0,
        max_batch=max_batch,
        on_done=on_batch,
        costs=costs,
        clock=time.clock,
    )
    engine.stop()  # so that `run` returns where nothing waits
    for place, (each, arrival_s) in enumerate(zip(rows, arrivals_s.tolist(), strict=True)):
        each.state, each.request_id = (np.array([place % RECORDED]),), place
        time.at(arrival_s, partial(engine.submit, [each]))
    while time.skip():
        engine.run()
    assert len(seen) == len(rows)
    found = [seen[place] for place in range(len(rows))]
    return Seen([each for each, _ in found], np.array([ms for _, ms in found]))


def mixed(
    count: int, share: float, arrivals_s: np.ndarray, deadline_ms: float
) -> list[InferenceRequest]:
    urgent = np.random.default_rng(2).random(count) < share
    rows = [InferenceRequest(()) for _ in range(count)]
    for place in np.flatnonzero(urgent):
        rows[place].deadline_s = arrivals_s[place] + deadline_ms / 1e3
    return rows


def at_seventy_percent() -> np.ndarray:
    """Arrivals (4000,) in seconds."""
    return poisson(0.7 * 1000 / 1.75, 4000)


@pytest.fixture(scope="module")
def alone_p99_ms() -> float:
    """The 99th percentile of the latency of as many rows where none has a deadline."""
    arrivals_s = at_seventy_percent()
    rows = [InferenceRequest(()) for _ in arrivals_s]
    return float(np.percentile(run(CORE, 1, rows, arrivals_s).latency_ms, 99))


@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize("multiple", [2, pytest.param(3, marks=pytest.mark.slow), 5])
def test_at_seventy_percent_load_nearly_all_deadlines_are_met_beside_rows_without(
    alone_p99_ms: float, share: float, multiple: int
) -> None:
    deadline_ms = multiple * 1.6  # of what exit 0 takes alone at worst
    arrivals_s = at_seventy_percent()
    rows = mixed(len(arrivals_s), share, arrivals_s, deadline_ms)
    urgent = np.array([each.deadline_s is not None for each in rows])
    seen = run(CORE, 1, rows, arrivals_s)
    assert seen.in_time(urgent, deadline_ms) > 0.985
    others = seen.latency_ms[~urgent]
    assert np.percentile(others, 99) < 1.5 * alone_p99_ms


def test_an_accelerator_serves_rows_with_and_without_deadlines() -> None:
    count, deadline_ms = 6000, 15.0
    arrivals_s = poisson(1200, count)
    rows = mixed(count, 0.5, arrivals_s, deadline_ms)
    urgent = np.array([each.deadline_s is not None for each in rows])
    seen = run(DEVICE, 16, rows, arrivals_s)
    assert seen.in_time(urgent, deadline_ms) > 0.985
    assert np.percentile(seen.latency_ms[~urgent], 99) < 200
    assert set(seen.exits(~urgent)) == {0, 1, 2}


def test_under_overload_by_deadlines_no_row_starves() -> None:
    count = 3000
    arrivals_s = poisson(2000, count)
    rows = mixed(count, 0.9, arrivals_s, 5.0)
    seen = run(CORE, 1, rows, arrivals_s)
    others = np.array([each.deadline_s is None for each in rows])
    # A tenth of twice what the core can do at most, and every other batch is theirs.
    assert seen.latency_ms[others].max() < 1500
    late = [each.result for each in seen.outcomes if isinstance(each.result, DeadlineExceeded)]
    assert late


def test_under_overload_a_core_spends_its_time_on_rows_that_can_still_be_in_time() -> None:
    count, deadline_ms = 4000, 10.0
    arrivals_s = poisson(2000, count)  # twice what the core can do at exit 0
    rows = mixed(count, 1.0, arrivals_s, deadline_ms)
    seen = run(CORE, 1, rows, arrivals_s)
    assert seen.in_time(np.ones(count, bool), deadline_ms) > 0.42


def test_a_batch_shrinks_until_its_rows_can_be_in_time() -> None:
    rows = [InferenceRequest(()) for _ in range(9)]
    for each in rows[1:]:
        each.deadline_s = 0.0035  # after the first, which runs alone, 2.5 ms are left
    seen = run(CORE, 16, rows, np.zeros(9))
    assert len(seen.exits(np.ones(9, bool))) == 3


def test_rows_of_one_batch_obey_their_own_deadline_and_parameter() -> None:
    def exits_of(rows: list[InferenceRequest]) -> list[int]:
        seen = run(DEVICE, 16, rows, np.zeros(len(rows)))
        return seen.exits(np.ones(len(rows), bool)).tolist()

    free = exits_of([InferenceRequest(()) for _ in range(12)])
    rows = [InferenceRequest(()) for _ in range(12)]
    # All but the first come while that runs, and share a batch.
    urgent, own = free.index(2, 1), free.index(0, 1)
    rows[urgent].deadline_s, rows[own].parameter = 0.0105, 2.0
    assert exits_of(rows) == [
        0 if place == urgent else 2 if place == own else exit for place, exit in enumerate(free)
    ]
