"""The interface of runtimes that run stages and exit heads, and how rows become batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

State = tuple[Any, ...]
"""The output of a stage, or the input of the first: one or several arrays of A rows each.

The input of the first stage holds numpy arrays. Later states may hold device values of any type;
only `gather` of the same backend takes them apart.
"""


class Part(NamedTuple):
    """Some rows of a batch, by their index in it."""

    state: State
    rows: Sequence[int]


class HeadOutput(NamedTuple):
    """The output of one exit head, on the host.

    Attributes:
        logits: (A, C); for segmentation (A, H, W, C).
        log_probs: Input of the policies: (A, C); for segmentation (A, P, C), on a coarser grid.
    """

    logits: NDArray[np.float32]
    log_probs: NDArray[np.float32]


class OutOfMemory(Exception):
    """The device has no room for a batch of this size; a smaller one may fit."""


class StageBackend(Protocol):
    """Runs one stage or one exit head on a batch; rows never influence each other.

    Any thread may call any method at any time.
    """

    @property
    def num_exits(self) -> int:
        """Number of exits, K."""

    @property
    def device(self) -> str:
        """Name of the device: `cpu`, `cuda:0`, ..."""

    def gather(self, parts: Sequence[Part]) -> State:
        """Join rows of several batches into one batch, in the order of the parts.

        The arrays of all parts agree in all but the first dimension. If the device prefers certain
        batch sizes, copies of the last row may follow.
        """

    def run_stage(self, stage: int, state: State) -> State:
        """Advance rows by one stage, from the output of the stage before (the input for stage 0).

        Raises:
            OutOfMemory: If the memory is short; a smaller batch may fit.
        """

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Classify rows from the state after stage `exit`.

        Raises:
            OutOfMemory: If the memory is short; a smaller batch may fit.
        """

    def synchronize(self) -> None:
        """Wait until the device has finished its work; needed only to time a single stage."""


def is_whole(part: Part, size: int) -> bool:
    """Return whether a part holds all rows of its batch of `size`, in order."""
    return len(part.rows) == size and list(part.rows) == list(range(size))


def gather_arrays(parts: Sequence[Part]) -> State:
    """Implement `StageBackend.gather` for numpy arrays; a batch that stays whole is not copied."""
    return join_states([_select_rows(part) for part in parts])


def _select_rows(part: Part) -> State:
    rows = part.rows
    if len(rows) == 1:
        # A slice is a view: the common batch of one row is never copied.
        if len(part.state[0]) == 1:
            return part.state
        return tuple(array[rows[0] : rows[0] + 1] for array in part.state)
    if is_whole(part, len(part.state[0])):
        return part.state
    return tuple(array[list(rows)] for array in part.state)


def join_states(states: list[State]) -> State:
    """Concatenate states whose arrays agree in all but the first dimension."""
    if len(states) == 1:
        return states[0]
    return tuple(np.concatenate(arrays) for arrays in zip(*states, strict=True))


def pad_to_bucket(parts: Sequence[Part], buckets: Sequence[int]) -> list[Part]:
    """Repeat the last row until the number of rows is that of the next bucket.

    Args:
        parts: Rows of batches.
        buckets: Batch sizes that the device prefers, increasing. More rows than the largest bucket
            are not padded.
    """
    rows = sum(len(part.rows) for part in parts)
    missing = next((size for size in buckets if size >= rows), rows) - rows
    if not missing:
        return list(parts)
    *others, last = parts
    return [*others, last._replace(rows=[*last.rows, *[last.rows[-1]] * missing])]


def check_buckets(buckets: Sequence[int]) -> tuple[int, ...]:
    """Return the buckets as a tuple once they are valid.

    Raises:
        ValueError: If they do not increase, or start below 1.
    """
    sizes = tuple(buckets)
    if any(a >= b for a, b in zip((0, *sizes), sizes, strict=False)):
        raise ValueError(f"buckets is {list(sizes)}; give increasing batch sizes of 1 or more")
    return sizes
