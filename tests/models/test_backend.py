import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.backend import Part, State, gather_arrays, join_states


def batch(rows: int, first: int = 0) -> State:
    """Two arrays of different shapes and types, whose rows are told apart by their numbers."""
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
