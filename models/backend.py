"""What runs the stages and heads of a network, whatever the runtime beneath."""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class HeadOutput(NamedTuple):
    """One exit's logits and log-probabilities, (A, C) each."""

    logits: NDArray[np.float32]
    log_probs: NDArray[np.float32]


class StageBackend(Protocol):
    """Runs one stage or one exit head on a batch; rows never influence each other.

    Any thread may call at any time.
    """

    @property
    def num_exits(self) -> int:
        """K."""

    def run_stage(self, stage: int, state: NDArray[np.float32]) -> NDArray[np.float32]:
        """Advance rows by one stage: from the state behind the one before (the input for 0)."""

    def run_head(self, exit: int, state: NDArray[np.float32]) -> HeadOutput:
        """Classify rows from the state behind stage `exit`."""
