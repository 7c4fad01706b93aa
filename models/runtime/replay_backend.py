"""A fake device for the engine: stages only take time, heads return recorded outputs."""

import functools
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.backend import HeadOutput, Part, State, gather_arrays
from models.stage_costs import StageCosts

# Longer delays are pauses of the whole machine, not lateness of `sleep`: do not make up for them.
MAX_LATENESS_S = 1e-3
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word loses bits


class ReplayBackend:
    """Run one batch at a time, for the time in a table of costs; needs no network.

    The state after every stage is one array (A,) with the indices of recorded rows. The input of
    the first stage is either such an array, or real input of any shape: a hash of its bytes selects
    a recorded row, so the same input always gives the same prediction.

    `time.sleep` wakes up some 60 to 100 us late on Linux. The next batch sleeps less by the
    lateness of the one before. A batch is then some 10 us too long on average and, on a machine
    with a spare core, 19 of 20 are within 0.1 ms. There is no busy waiting: a fake device uses no
    processor time.

    Args:
        log_probs: Recorded log-probabilities, (K, N, C).
        costs: Cost of a batch at each of the K stages, heads included. At 0 ms nothing sleeps.
        sleep: Sleeps for some seconds.
        clock: Returns seconds; must advance at least as fast as `sleep` sleeps.

    Raises:
        ValueError: If the recording is of a segmentation, holds no rows, or differs from the table
            in the number of exits.
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
                f"stages; give one stage per exit"
            )
        self.costs = costs
        self._log_probs = np.asarray(log_probs, np.float32)
        self._sleep = sleep
        self._clock = clock
        self._busy = threading.Lock()
        self._late_s = 0.0

    @property
    def num_exits(self) -> int:
        """Number of exits, K."""
        return len(self._log_probs)

    def gather(self, parts: Sequence[Part]) -> State:
        """Join the rows of all parts."""
        return gather_arrays(parts)

    def run_stage(self, stage: int, state: State) -> State:
        """Occupy the device for the batch's time; other threads wait for it."""
        rows = self._recorded_rows(state) if stage == 0 else state[0]
        cost_s = self.costs.batch_ms(stage, len(rows)) / 1e3
        if cost_s > 0:
            with self._busy:
                self._spend(cost_s)
        return (rows,)

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Look up the recorded outputs of the rows."""
        log_probs = self._log_probs[exit, state[0]]
        return HeadOutput(log_probs, log_probs)

    def synchronize(self) -> None:
        """Do nothing: every call returns only when its time is over."""

    def _spend(self, cost_s: float) -> None:
        """Sleep, less the time by which the batch before slept too long."""
        remaining_s = cost_s - self._late_s
        if remaining_s <= 0:
            self._late_s -= cost_s
            return
        started = self._clock()
        self._sleep(remaining_s)
        self._late_s = min(max(self._clock() - started - remaining_s, 0.0), MAX_LATENESS_S)

    def _recorded_rows(self, inputs: State) -> NDArray[np.int64]:
        if len(inputs) == 1 and inputs[0].ndim == 1 and inputs[0].dtype.kind in "iu":
            return np.asarray(inputs[0], np.int64)
        rows: NDArray[np.uint64] = _hashes(inputs) % np.uint64(self._log_probs.shape[1])
        return rows.astype(np.int64)


def _hashes(inputs: State) -> NDArray[np.uint64]:
    """Hash the bytes of each row: a polynomial in them, modulo 2**64, that costs little per row."""
    hashes = np.zeros(len(inputs[0]), np.uint64)
    for array in inputs:
        words = _words(np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8))
        hashes = hashes * MULTIPLIER + words @ _powers(words.shape[1])
    return hashes >> np.uint64(32)  # low bits depend on the low bits of all words alone


@functools.cache
def _powers(count: int) -> NDArray[np.uint64]:
    return np.full(count, MULTIPLIER, np.uint64).cumprod()


def _words(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return bytes (A, B) as words (A, W), filled up with zeros."""
    missing = -rows.shape[1] % 8
    return np.pad(rows, ((0, 0), (0, missing))).view(np.uint64) if missing else rows.view(np.uint64)
