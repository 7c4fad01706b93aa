"""A fake device beneath the engine: stages only take time, heads answer from a recording."""

import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.backend import HeadOutput, Part, State, gather_arrays
from models.stage_costs import StageCosts

MOST_LATE_S = 1e-3  # a pause of the whole machine is no fault of `sleep` and is not made up for


class ReplayBackend:
    """Runs one batch at a time, for as long as a table of costs says; needs no network.

    The state after every stage is one array (A,) of recorded rows. The input of the first stage is
    either that already, or real input of any shape, which stands for the recorded row that a hash
    of its bytes points at: the same input always for the same row.

    `time.sleep` wakes up some 60 to 100 us late on Linux. The lateness of one batch is taken off
    the next, which leaves a batch some 10 us too long on average and, on a machine with a core to
    spare, 19 of 20 within 0.1 ms. Nothing spins: a fake device costs no processor time.

    Args:
        log_probs: Of the recording, (K, N, C).
        costs: What a batch costs at each stage, K of them; heads are in them. At 0 ms nothing
            sleeps.
        sleep: Seconds.
        clock: Seconds; passes at least as fast as `sleep` sleeps.

    Raises:
        ValueError: If the recording is a segmentation's, holds no rows, or has another number of
            exits than the table.
    """

    device = "replay"

    def __init__(
        self,
        log_probs: NDArray[np.floating],
        costs: StageCosts,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if log_probs.ndim != 3 or 0 in log_probs.shape:
            raise ValueError(
                f"log_probs has the shape {log_probs.shape}; give recorded predictions of a "
                f"classifier, (exits, rows, classes), with at least one row"
            )
        if len(log_probs) != costs.num_exits:
            raise ValueError(
                f"the recording has {len(log_probs)} exits, the costs have {costs.num_exits} "
                f"stages; give one for each exit"
            )
        self.costs = costs
        self._log_probs = np.asarray(log_probs, np.float32)
        self._sleep = sleep
        self._clock = clock
        self._busy = threading.Lock()
        self._late_s = 0.0

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self._log_probs)

    def gather(self, parts: Sequence[Part]) -> State:
        """Pick and join rows."""
        return gather_arrays(parts)

    def run_stage(self, stage: int, state: State) -> State:
        """Hold the device for the batch's time; other threads queue."""
        rows = self._recorded_rows(state) if stage == 0 else state[0]
        cost_s = self.costs.batch_ms(stage, len(rows)) / 1e3
        if cost_s > 0:
            with self._busy:
                self._take(cost_s)
        return (rows,)

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Look the rows up."""
        log_probs = self._log_probs[exit, state[0]]
        return HeadOutput(log_probs, log_probs)

    def synchronize(self) -> None:
        """Nothing: every call takes its time."""

    def _take(self, cost_s: float) -> None:
        """Sleep, less what the batch before slept too long."""
        rest_s = cost_s - self._late_s
        if rest_s <= 0:
            self._late_s -= cost_s
            return
        started = self._clock()
        self._sleep(rest_s)
        self._late_s = min(max(self._clock() - started - rest_s, 0.0), MOST_LATE_S)

    def _recorded_rows(self, inputs: State) -> NDArray[np.int64]:
        if len(inputs) == 1 and inputs[0].ndim == 1 and inputs[0].dtype.kind in "iu":
            return np.asarray(inputs[0], np.int64)
        num_rows = self._log_probs.shape[1]
        return np.array([_hash(row) % num_rows for row in zip(*inputs, strict=True)], np.int64)


def _hash(row: Sequence[NDArray[Any]]) -> int:
    """Of the bytes of one row."""
    value = 0
    for array in row:
        value = zlib.crc32(array.tobytes(), value)
    return value
