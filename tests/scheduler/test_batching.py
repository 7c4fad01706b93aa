import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.stage_costs import StageCosts
from scheduler.batching import BatchPriority, QueuedBatch, choose_batch, useful_shares

CPU = StageCosts.of_exits([1.0, 2.0, 3.0])
GPU = StageCosts.of_exits([1.0, 2.0, 3.0], free_rows=16)
QUEUED = st.lists(
    st.builds(QueuedBatch, st.integers(0, 2), st.integers(1, 40), st.floats(0, 100)), min_size=1
)


def test_the_useful_share_is_relative_to_the_fastest_batch_of_the_stage() -> None:
    first, *_ = useful_shares(StageCosts((1, 4), np.array([[1.0, 2.0]])).table_ms(4))
    assert first == pytest.approx([0, 0.5, 0.75, 0.9, 1])
    assert useful_shares(CPU.table_ms(3))[1] == pytest.approx([0, 1, 1, 1])


def test_stages_that_cost_nothing_have_shares_all_the_same() -> None:
    shares = useful_shares(StageCosts.of_exits([0.0]).table_ms(4))
    assert shares[0] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_the_fuller_batch_goes_first_among_rows_of_one_age() -> None:
    queued = [QueuedBatch(1, 2, 90.0), QueuedBatch(0, 16, 90.0)]
    assert choose_batch(queued, 100.0, BatchPriority(GPU.table_ms(16))) == 1


def test_the_deepest_goes_first_among_equals() -> None:
    queued = [QueuedBatch(0, 3, 90.0), QueuedBatch(2, 3, 90.0), QueuedBatch(1, 3, 90.0)]
    assert choose_batch(queued, 100.0, BatchPriority(CPU.table_ms(1))) == 1


@given(QUEUED)
def test_where_batching_saves_nothing_the_row_that_arrived_first_goes_first(
    queued: list[QueuedBatch],
) -> None:
    chosen = queued[choose_batch(queued, 101.0, BatchPriority(CPU.table_ms(1)))]
    first_ms = min(each.arrived_ms for each in queued)
    assert chosen.arrived_ms == pytest.approx(first_ms, abs=1e-9)


@given(QUEUED, st.floats(0.1, 8))
def test_no_row_is_overtaken_by_more_than_the_limit(
    queued: list[QueuedBatch], passes: float
) -> None:
    priority = BatchPriority(GPU.table_ms(16), passes)
    chosen = queued[choose_batch(queued, 101.0, priority)]
    first_ms = min(each.arrived_ms for each in queued)
    assert chosen.arrived_ms - first_ms <= passes * priority.pass_ms


@given(QUEUED)
def test_the_highest_priority_wins_unless_it_overtakes_too_much(queued: list[QueuedBatch]) -> None:
    priority = BatchPriority(GPU.table_ms(16), float("inf"))
    chosen = queued[choose_batch(queued, 101.0, priority)]
    highest = max(priority.of(each.stage, each.rows, 101.0 - each.arrived_ms) for each in queued)
    assert priority.of(chosen.stage, chosen.rows, 101.0 - chosen.arrived_ms) == highest
