from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.backend import HeadOutput, Part, State, gather_arrays, pad_to_bucket
from models.runtime.cascade_backend import CascadeBackend
from tests.backends import answers

ROWS = 7


class Adding:
    """A network whose every stage adds a number to its rows; heads show them."""

    device = "none"

    def __init__(self, exits: int, number: float, buckets: Sequence[int] = ()) -> None:
        self.num_exits = exits
        self.waits = 0
        self._number = number
        self._buckets = buckets

    def gather(self, parts: Sequence[Part]) -> State:
        return gather_arrays(pad_to_bucket(parts, self._buckets))

    def run_stage(self, stage: int, state: State) -> State:
        return (sum(state) + self._number,)

    def run_head(self, exit: int, state: State) -> HeadOutput:
        (rows,) = state
        return HeadOutput(rows * (exit + 1), rows * (exit + 1))

    def synchronize(self) -> None:
        self.waits += 1


def inputs(rows: int = ROWS) -> State:
    return tuple(np.arange(rows)[:, None] * scale for scale in (1.0, 10.0, 100.0))


def cascade(buckets: Sequence[int] = ()) -> CascadeBackend:
    """Three networks; the first and the last read the same input, the second two arrays."""
    members = [Adding(2, 0.5, buckets), Adding(1, 0.25, buckets), Adding(2, 0.125, buckets)]
    return CascadeBackend(members, [slice(0, 1), slice(1, 3), slice(0, 1)])


def expected(rows: int = ROWS) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    first, second, third = inputs(rows)
    own = [
        *answers(Adding(2, 0.5), (first,)),
        *answers(Adding(1, 0.25), (second, third)),
        *answers(Adding(2, 0.125), (first,)),
    ]
    return [output.log_probs for output in own]


def test_each_network_reads_its_own_input() -> None:
    for found, own in zip(answers(cascade(), inputs()), expected(), strict=True):
        np.testing.assert_array_equal(found.log_probs, own)


@given(st.data())
@pytest.mark.parametrize("buckets", [(), (1, 4, 16)])
def test_rows_keep_their_inputs_however_batches_are_mixed(
    buckets: tuple[int, ...], data: st.DataObject
) -> None:
    backend = cascade(buckets)
    places = {row: (inputs(), row) for row in range(ROWS)}
    for exit, own in enumerate(expected()):
        remaining = data.draw(st.permutations(sorted(places)))
        leaving = data.draw(st.integers(0, max(len(remaining) - 1, 0)))
        remaining = remaining[leaving:]  # some have left before this stage
        cut = data.draw(st.integers(0, len(remaining)))
        places = {row: places[row] for row in remaining}
        for batch in (remaining[:cut], remaining[cut:]):
            if not batch:
                continue
            state = backend.gather([Part(places[row][0], [places[row][1]]) for row in batch])
            state = backend.run_stage(exit, state)
            shown = backend.run_head(exit, state).log_probs[: len(batch)]
            np.testing.assert_array_equal(shown, own[batch])
            places |= {row: (state, place) for place, row in enumerate(batch)}


def test_it_looks_like_one_network() -> None:
    members = [Adding(2, 1), Adding(1, 1)]
    backend = CascadeBackend(members, [slice(0, 1), slice(0, 1)])
    backend.synchronize()
    assert (backend.num_exits, backend.device) == (3, "none")
    assert [member.waits for member in members] == [1, 1]


def test_an_input_is_let_go_once_the_last_network_has_read_it() -> None:
    backend, state = cascade(), inputs()
    held = []
    for stage in range(backend.num_exits):
        state = backend.run_stage(stage, state)
        held.append(len(state[1]))  # a batch underway: its state and what is unread
    assert held == [2, 2, 1, 0, 0]
