import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.backend import (
    Part,
    State,
    check_buckets,
    gather_arrays,
    is_whole,
    join_states,
    pad_to_bucket,
)


def batch(rows: int, first: int = 0) -> State:
    """Make two arrays of different shapes and types, whose rows hold their numbers."""
    names = np.arange(first, first + rows)
    return names[:, None] * np.ones((1, 3), np.float32), names.astype(np.int64)[:, None, None]


@st.composite
def parts(draw: st.DrawFn) -> list[Part]:
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    chosen = []
    for index, size in enumerate(sizes):
        rows = draw(
            st.lists(st.integers(0, size - 1), min_size=1, max_size=8) | st.just([*range(size)])
        )
        chosen.append(Part(batch(size, 10 * index), rows))
    return chosen


@given(parts())
def test_rows_are_picked_and_joined_in_the_order_of_the_parts(given: list[Part]) -> None:
    gathered = gather_arrays(given)
    for index, array in enumerate(gathered):
        expected = np.concatenate([part.state[index][np.array(part.rows)] for part in given])
        assert np.array_equal(array, expected)
        assert array.dtype == given[0].state[index].dtype


@pytest.mark.parametrize("rows", [1, 5])
def test_a_batch_that_stays_whole_is_not_copied(rows: int) -> None:
    state = batch(rows)
    gathered = gather_arrays([Part(state, list(range(rows)))])
    assert all(np.shares_memory(a, b) for a, b in zip(gathered, state, strict=True))


def test_one_row_of_a_batch_is_not_copied() -> None:
    state = batch(5)
    (row, name) = gather_arrays([Part(state, [3])])
    assert np.shares_memory(row, state[0]) and row.tolist() == [[3, 3, 3]]
    assert name.shape == (1, 1, 1)


@pytest.mark.parametrize("rows", [[0, 1, 2], [4, 3, 2, 1, 0], [0, 1, 2, 3, 3], [0, 0]])
def test_some_rows_or_others_in_order_are_not_taken_for_the_whole(rows: list[int]) -> None:
    (picked, _) = gather_arrays([Part(batch(5), rows)])
    assert picked[:, 0].tolist() == rows


def test_rows_of_different_shapes_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="dimension"):
        join_states([(np.zeros((1, 3)),), (np.zeros((1, 4)),)])


def test_states_of_different_numbers_of_arrays_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="shorter"):
        join_states([(np.zeros((1, 3)), np.zeros((1, 3))), (np.zeros((1, 3)),)])


STATE = (np.arange(8),)


def rows_of(parts: list[Part]) -> list[int]:
    return gather_arrays(parts)[0].tolist()


def test_rows_are_filled_up_to_the_next_bucket_by_the_last_one() -> None:
    parts = [Part(STATE, [3]), Part(STATE, [5, 1])]
    assert rows_of(pad_to_bucket(parts, (1, 2, 4, 8))) == [3, 5, 1, 1]
    assert rows_of(pad_to_bucket(parts, (8,))) == [3, 5, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("buckets", [(), (3,), (1, 3, 6), (1, 2)])
def test_rows_that_fill_a_bucket_or_go_beyond_stay_as_they_are(buckets: tuple[int, ...]) -> None:
    parts = [Part(STATE, [3]), Part(STATE, [5, 1])]
    assert pad_to_bucket(parts, buckets) == parts


@given(st.integers(1, 8), st.lists(st.integers(1, 16), unique=True).map(sorted))
def test_no_row_is_lost_and_the_smallest_bucket_that_fits_is_taken(
    rows: int, buckets: list[int]
) -> None:
    size = min((size for size in buckets if size >= rows), default=rows)
    filled = rows_of(pad_to_bucket([Part(STATE, range(rows))], buckets))
    assert filled == [*range(rows), *[rows - 1] * (size - rows)]


@pytest.mark.parametrize(
    ("rows", "whole"), [([0, 1, 2], True), ([0, 1], False), ([0, 2, 1], False), (range(3), True)]
)
def test_a_part_is_whole_with_all_rows_in_order(rows: list[int], whole: bool) -> None:
    assert is_whole(Part((np.zeros(3),), rows), 3) == whole


@pytest.mark.parametrize("buckets", [(0, 1), (2, 1), (4, 4), (-1,)])
def test_buckets_rise(buckets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="give increasing batch sizes of 1 or more"):
        check_buckets(buckets)


def test_buckets_may_be_none_or_many() -> None:
    assert check_buckets(()) == () and check_buckets([1, 4]) == (1, 4)
