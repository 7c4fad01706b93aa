import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.backend import Part, gather_arrays, is_whole
from models.runtime.buckets import check_buckets, padded

STATE = (np.arange(8),)


def rows_of(parts: list[Part]) -> list[int]:
    return gather_arrays(parts)[0].tolist()


def test_rows_are_filled_up_to_the_next_bucket_by_the_last_one() -> None:
    parts = [Part(STATE, [3]), Part(STATE, [5, 1])]
    assert rows_of(padded(parts, (1, 2, 4, 8))) == [3, 5, 1, 1]
    assert rows_of(padded(parts, (8,))) == [3, 5, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("buckets", [(), (3,), (1, 3, 6), (1, 2)])
def test_rows_that_fill_a_bucket_or_go_beyond_stay_as_they_are(buckets: tuple[int, ...]) -> None:
    parts = [Part(STATE, [3]), Part(STATE, [5, 1])]
    assert padded(parts, buckets) == parts


@given(st.integers(1, 8), st.lists(st.integers(1, 16), unique=True).map(sorted))
def test_no_row_is_lost_and_the_smallest_bucket_that_fits_is_taken(
    rows: int, buckets: list[int]
) -> None:
    size = min((size for size in buckets if size >= rows), default=rows)
    filled = rows_of(padded([Part(STATE, range(rows))], buckets))
    assert filled == [*range(rows), *[rows - 1] * (size - rows)]


@pytest.mark.parametrize(
    ("rows", "whole"), [([0, 1, 2], True), ([0, 1], False), ([0, 2, 1], False), (range(3), True)]
)
def test_a_part_is_whole_with_all_rows_in_order(rows: list[int], whole: bool) -> None:
    assert is_whole(Part((np.zeros(3),), rows), 3) == whole


@pytest.mark.parametrize("buckets", [(0, 1), (2, 1), (4, 4), (-1,)])
def test_buckets_rise(buckets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="give rising batch sizes of 1 or more"):
        check_buckets(buckets)


def test_buckets_may_be_none_or_many() -> None:
    assert check_buckets(()) == () and check_buckets([1, 4]) == (1, 4)
