"""Which batch a free worker runs next: one rule, for the engine and for the simulator.

Found by simulation (`python -m benchmarks.refill` prints the study) among six policies:

- Running the deepest or the oldest stage never lets a batch refill where one worker runs: the rows
  that remain of a batch are always what is taken next.
- Running the shallowest stage fills batches by never finishing a row while others arrive.
- Running the largest batch has the best throughput and median latency, but the few rows that need
  the last exits wait until enough of them have come together.
- Priority (below) has that throughput, and the tail latency of the deepest-first rule at low load.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAX_OVERTAKE_PASSES = 8.0  # full batches through the whole network
MIN_WASTE = 0.05  # share of a batch's time that counts as wasted, at least
SMALLEST_MS = 1e-6


class QueuedBatch(NamedTuple):
    """The batch that one queue would give.

    Attributes:
        stage: The stage its rows wait for, 0-based.
        rows: Number of rows waiting, 1 or more.
        arrived_ms: When the row at the head of the queue entered the system.
    """

    stage: int
    rows: int
    arrived_ms: float


class BatchPriority:
    """Priority of a batch: age x useful time / wasted time.

    Age is the time since the row at the head of the queue entered the system. The useful share of a
    batch's time is its rows per ms over the most rows per ms that the stage can do. At low load all
    batches are small and waste most of their time, ages differ widely, and the deeper row wins,
    which arrived earlier. Under load, ages level out and the fuller batch wins. Where batching
    saves nothing, as on a CPU, the row that arrived first goes first.

    Args:
        table_ms: Milliseconds of a batch of b rows at each stage, (K, B + 1); column 0 is unused.
        max_overtake_passes: No row is overtaken by one that arrived later by more than this many
            full batches through the network. Without the limit, rows of an exit that hardly any
            row reaches would wait for others of their kind for good.
    """

    def __init__(self, table_ms: Array, max_overtake_passes: float = MAX_OVERTAKE_PASSES) -> None:
        self.max_batch = table_ms.shape[1] - 1
        self.pass_ms = float(table_ms[:, -1].sum())  # of a full batch through the whole network
        self.max_overtake_ms = max_overtake_passes * self.pass_ms
        shares = useful_shares(table_ms)
        weights = shares / (1 + MIN_WASTE - shares)
        self._weights: list[list[float]] = weights.tolist()

    def of(self, stage: int, rows: int, age_ms: float) -> float:
        """Return the priority of the batch that a queue of `rows` rows would give."""
        weight: float = self._weights[stage][min(rows, self.max_batch)]
        return weight * age_ms


def choose_batch(queued: Sequence[QueuedBatch], now_ms: float, priority: BatchPriority) -> int:
    """Choose the batch to run next.

    Args:
        queued: One entry per queue that holds rows; at least one.
        now_ms: The present, on the clock of `arrived_ms`.
        priority: Priorities of batches on this device.

    Returns:
        The index of the batch of the highest priority, the deepest of equals; or of the batch whose
        head arrived first, where that one would be overtaken by too much.
    """
    places = range(len(queued))
    best = max(
        places,
        key=lambda at: (
            priority.of(queued[at].stage, queued[at].rows, now_ms - queued[at].arrived_ms),
            queued[at].stage,
        ),
    )
    first = min(places, key=lambda at: (queued[at].arrived_ms, -queued[at].stage))
    overtaken_ms = queued[best].arrived_ms - queued[first].arrived_ms
    return first if overtaken_ms > priority.max_overtake_ms else best


def useful_shares(table_ms: Array) -> Array:
    """Return rows per ms over the most rows per ms at that stage, (K, B + 1).

    Args:
        table_ms: Milliseconds of a batch of b rows at each stage, (K, B + 1).
    """
    rates = np.arange(table_ms.shape[1]) / np.maximum(table_ms, SMALLEST_MS)
    shares: Array = rates / rates.max(axis=1, keepdims=True)
    return shares
