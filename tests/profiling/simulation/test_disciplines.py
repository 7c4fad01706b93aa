import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.stage_costs import StageCosts
from profiling.simulation.disciplines import (
    DISCIPLINES,
    Ready,
    by_priority,
    deepest,
    fullest,
    largest,
    oldest,
    overdue,
    shallowest,
)

CPU = StageCosts.of_exits([1.0, 2.0, 3.0])
GPU = StageCosts.of_exits([1.0, 2.0, 3.0], free_rows=16)
INF = float("inf")


def ready(rows: list[int], arrived_ms: list[float], since_ms: list[float] | None = None) -> Ready:
    """At 100 ms."""
    return Ready(100.0, rows, since_ms or arrived_ms, arrived_ms)


@pytest.mark.parametrize("discipline", DISCIPLINES)
@given(st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any), st.integers(0, 999))
def test_what_is_chosen_has_rows(discipline: str, rows: list[int], seed: int) -> None:
    times = np.random.default_rng(seed).uniform(0, 100, 3)
    arrived = [float(time) if count else INF for time, count in zip(times, rows, strict=True)]
    for costs in (CPU, GPU, StageCosts.of_exits([0.0, 0.0, 0.0])):
        assert rows[DISCIPLINES[discipline](costs, 16)(ready(rows, arrived))] > 0


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_a_lone_row_runs_even_when_it_has_only_just_come(discipline: str) -> None:
    assert DISCIPLINES[discipline](GPU, 16)(ready([1, 0, 0], [100.0, INF, INF])) == 0


def test_the_simple_ones_are_what_their_names_say() -> None:
    view = ready([30, 5, 2], [90.0, 80.0, 85.0])
    assert (deepest(view), shallowest(view), oldest(view)) == (2, 0, 1)
    assert largest(16)(view) == 0


def test_of_full_batches_the_deepest_is_largest() -> None:
    assert largest(16)(ready([40, 16, 3], [0.0, 0.0, 0.0])) == 1


def test_fullest_turns_to_rows_between_stages_that_have_lost_patience() -> None:
    choose = fullest(GPU, 16, patience=2.0)  # 6 ms
    arrived = [90.0, 80.0, 70.0]
    assert choose(ready([16, 2, 1], arrived, [90.0, 95.0, 94.5])) == 0
    assert choose(ready([16, 2, 1], arrived, [90.0, 93.0, 93.5])) == 1


def test_rows_before_the_first_stage_are_never_overdue() -> None:
    assert overdue(ready([50, 0, 0], [0.0, INF, INF]), 1.0) is None
    assert overdue(ready([50], [0.0]), 1.0) is None


def test_urgent_prefers_few_old_rows_at_low_load_and_full_batches_under_backlog() -> None:
    choose = by_priority(GPU, 16)
    assert choose(ready([4, 1, 0], [99.9, 97.0, INF])) == 1
    assert choose(ready([16, 1, 0], [20.0, 17.0, INF], [20.0, 97.0, INF])) == 0
    assert choose(ready([16, 15, 0], [80.0, 7.0, INF], [80.0, 97.0, INF])) == 1


def test_urgent_is_oldest_where_batches_save_nothing() -> None:
    assert by_priority(CPU, 16)(ready([16, 1, 1], [96.0, 95.0, 95.5])) == 1
