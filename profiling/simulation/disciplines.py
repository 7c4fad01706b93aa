"""Batching policies to compare in simulation: which stage a free worker runs next.

`scheduler.batching` gives the result of the comparison.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from models.stage_costs import StageCosts
from scheduler.batching import MAX_OVERTAKE_PASSES, BatchPriority, QueuedBatch, choose_batch


class Ready(NamedTuple):
    """The rows that wait for each stage; there is at least one.

    Attributes:
        now_ms: Current time.
        rows: Number of rows, (K,).
        since_ms: Time at which the first row became ready there, (K,); inf if none waits.
        arrived_ms: Time at which the first row arrived in the system, (K,); inf if none waits.
    """

    now_ms: float
    rows: Sequence[int]
    since_ms: Sequence[float]
    arrived_ms: Sequence[float]


BatchingPolicy = Callable[[Ready], int]
"""Selects the stage to run, among those where rows wait."""


def deepest(ready: Ready) -> int:
    """The deepest stage: finish rows that are furthest."""
    return max(stage for stage, rows in enumerate(ready.rows) if rows)


def shallowest(ready: Ready) -> int:
    """The shallowest stage: start rows that have arrived."""
    return min(stage for stage, rows in enumerate(ready.rows) if rows)


def oldest(ready: Ready) -> int:
    """The stage of the row that arrived first."""
    return min(range(len(ready.rows)), key=lambda stage: (ready.arrived_ms[stage], -stage))


def largest(max_batch: int) -> BatchingPolicy:
    """The most rows, up to a full batch; at a tie the deepest."""

    def choose(ready: Ready) -> int:
        return max(
            range(len(ready.rows)), key=lambda stage: (min(ready.rows[stage], max_batch), stage)
        )

    return choose


def fullest(
    costs: StageCosts, max_batch: int, patience: float = MAX_OVERTAKE_PASSES
) -> BatchingPolicy:
    """The largest batch, unless a row between stages has waited longer than the patience."""
    take_largest = largest(max_batch)
    patience_ms = patience * float(costs.table_ms(max_batch)[:, -1].sum())

    def choose(ready: Ready) -> int:
        late = overdue(ready, patience_ms)
        return take_largest(ready) if late is None else late

    return choose


def by_priority(
    costs: StageCosts, max_batch: int, max_overtake_passes: float = MAX_OVERTAKE_PASSES
) -> BatchingPolicy:
    """The batch of the highest priority, as the engine chooses it."""
    priority = BatchPriority(costs.table_ms(max_batch), max_overtake_passes)

    def choose(ready: Ready) -> int:
        queued = [
            QueuedBatch(stage, rows, ready.arrived_ms[stage])
            for stage, rows in enumerate(ready.rows)
            if rows
        ]
        return queued[choose_batch(queued, ready.now_ms, priority)].stage

    return choose


def overdue(ready: Ready, patience_ms: float) -> int | None:
    """The stage after the first whose first row has waited longest, if beyond the patience.

    Rows before the first stage are left out: under overload they wait as long as the queue is, and
    if they went first, every new row would overtake those already started.
    """
    if len(ready.rows) == 1:
        return None
    stage = min(range(1, len(ready.rows)), key=lambda stage: ready.since_ms[stage])
    return stage if ready.now_ms - ready.since_ms[stage] > patience_ms else None


DISCIPLINES: dict[str, Callable[[StageCosts, int], BatchingPolicy]] = {
    "urgent": by_priority,
    "fullest": fullest,
    "largest": lambda costs, max_batch: largest(max_batch),
    "oldest": lambda costs, max_batch: oldest,
    "deepest": lambda costs, max_batch: deepest,
    "shallowest": lambda costs, max_batch: shallowest,
}
DEFAULT_DISCIPLINE = "urgent"
