"""What runs the stages and heads of a network, whatever the runtime beneath."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

State = tuple[Any, ...]
"""What lies after a stage (or is put into the first): one array, or several, of A rows each.

What goes into the first stage are numpy arrays; behind it they may be whatever the backend keeps on
its device. Only `gather` of the same backend takes them apart.
"""


class Part(NamedTuple):
    """Some rows of a batch, by their places in it."""

    state: State
    rows: Sequence[int]


class HeadOutput(NamedTuple):
    """What one exit says, on the host.

    Attributes:
        logits: (A, C); of a segmentation (A, H, W, C).
        log_probs: What policies read: (A, C); of a segmentation (A, P, C) on a coarser grid.
    """

    logits: NDArray[np.float32]
    log_probs: NDArray[np.float32]


class OutOfMemory(Exception):
    """The device has no room for a batch of this size; a smaller one may fit."""


class StageBackend(Protocol):
    """Runs one stage or one exit head on a batch; rows never influence each other.

    Any thread may call at any time.
    """

    @property
    def num_exits(self) -> int:
        """K."""

    @property
    def device(self) -> str:
        """Where it runs: `cpu`, `cuda:0`, ..."""

    def gather(self, parts: Sequence[Part]) -> State:
        """One batch of rows picked from batches, in the order of the parts.

        Their arrays agree in all but the first dimension. Where the device prefers certain batch
        sizes, copies of the last row may follow.
        """

    def run_stage(self, stage: int, state: State) -> State:
        """Advance rows by one stage: from the state behind the one before (the input for 0).

        Raises:
            OutOfMemory: If a smaller batch might do.
        """

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Classify rows from the state after stage `exit`.

        Raises:
            OutOfMemory: If a smaller batch might do.
        """

    def synchronize(self) -> None:
        """Wait until the device has done what it was told; needed only to time a stage alone."""


def is_whole(part: Part, size: int) -> bool:
    """Whether a part is all rows of its batch of `size`, in order."""
    return len(part.rows) == size and list(part.rows) == list(range(size))


def gather_arrays(parts: Sequence[Part]) -> State:
    """`StageBackend.gather` of numpy arrays; a batch that stays whole is not copied."""
    return join_states([_picked(part) for part in parts])


def _picked(part: Part) -> State:
    rows = part.rows
    if len(rows) == 1:
        if len(part.state[0]) == 1:
            return part.state
        return tuple(array[rows[0] : rows[0] + 1] for array in part.state)
    if is_whole(part, len(part.state[0])):
        return part.state
    return tuple(array[list(rows)] for array in part.state)


def join_states(states: list[State]) -> State:
    """One batch of rows whose arrays agree in all but the first dimension."""
    if len(states) == 1:
        return states[0]
    return tuple(np.concatenate(arrays) for arrays in zip(*states, strict=True))
