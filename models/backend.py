"""What runs the stages and heads of a network, whatever the runtime beneath."""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

State = tuple[NDArray[Any], ...]
"""What lies behind a stage (or is put into the first): one array, or several, of A rows each."""


class HeadOutput(NamedTuple):
    """What one exit says.

    Attributes:
        logits: (A, C); of a segmentation (A, H, W, C).
        log_probs: What policies read: (A, C); of a segmentation (A, P, C) on a coarser grid.
    """

    logits: NDArray[np.float32]
    log_probs: NDArray[np.float32]


class StageBackend(Protocol):
    """Runs one stage or one exit head on a batch; rows never influence each other.

    Any thread may call at any time.
    """

    @property
    def num_exits(self) -> int:
        """K."""

    def run_stage(self, stage: int, state: State) -> State:
        """Advance rows by one stage: from the state behind the one before (the input for 0)."""

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Classify rows from the state behind stage `exit`."""


def join_states(states: list[State]) -> State:
    """One batch of rows whose arrays agree in all but the first dimension."""
    if len(states) == 1:
        return states[0]
    return tuple(np.concatenate(arrays) for arrays in zip(*states, strict=True))


def row_of(state: State, index: int) -> State:
    """One row of a batch, as a batch of its own."""
    return tuple(array[index : index + 1] for array in state)
