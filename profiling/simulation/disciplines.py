"""Which stage a free worker runs next, where rows are ready at several.

Found by simulation (`benchmarks/refill.py` prints the study):

- deepest and oldest never let a batch refill where one worker runs: what stays of a batch is always
  what they take next;
- shallowest fills batches by never finishing any row while others come;
- largest and fullest have the best throughput and median, and leave the few rows that need the
  last exits waiting until enough of them have come together;
- urgent has their throughput, and the tail of the deepest at low load.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from models.stage_costs import StageCosts

MAX_OVERTAKE_PASSES = 8.0  # full batches through the whole network
WASTE = 0.05  # of a batch's time, at least
SMALLEST_MS = 1e-6


class Ready(NamedTuple):
    """What waits before each stage; at least one row does.

    Attributes:
        now_ms: The present.
        rows: How many, (K,).
        since_ms: When the row at the head became ready there, (K,); inf where none waits.
        arrived_ms: When the row at the head came into the system, (K,); inf where none waits.
    """

    now_ms: float
    rows: Sequence[int]
    since_ms: Sequence[float]
    arrived_ms: Sequence[float]


BatchingPolicy = Callable[[Ready], int]
"""The stage to run; one where rows wait."""


def deepest(ready: Ready) -> int:
    """Finish what is furthest."""
    return max(stage for stage, rows in enumerate(ready.rows) if rows)


def shallowest(ready: Ready) -> int:
    """Start what has come."""
    return min(stage for stage, rows in enumerate(ready.rows) if rows)


def oldest(ready: Ready) -> int:
    """The row that came first."""
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
    """The largest batch, unless rows between stages have lost patience."""
    take_largest, patience_ms = largest(max_batch), patience * _pass_ms(costs, max_batch)

    def choose(ready: Ready) -> int:
        late = overdue(ready, patience_ms)
        return take_largest(ready) if late is None else late

    return choose


class BatchPriority:
    """How much a batch does, as it is needed: age x useful time / wasted time.

    Age is the time since the row at the head came into the system. The useful share of a batch's
    time is its rows per ms over the most that the stage can do per ms. At low load all batches are
    small and waste most of their time, ages differ by much, and the deeper row wins, which came
    earlier. Where rows pile up, ages draw level and the fuller batch wins. Where batches save
    nothing, as on a CPU, what came first goes first.

    Args:
        costs: Of a batch at each stage.
        max_batch: Most rows of a batch.
        patience: No row is overtaken by one that came later by more than so many full batches
            through the network, so that none starve: those of an exit that hardly any row reaches
            would wait for others of their kind.
    """

    def __init__(
        self, costs: StageCosts, max_batch: int, patience: float = MAX_OVERTAKE_PASSES
    ) -> None:
        self.max_batch = max_batch
        self.pass_ms = _pass_ms(costs, max_batch)  # of a full batch, the whole network
        self.patience_ms = patience * self.pass_ms
        self._weights = [
            [useful / (1 + WASTE - useful) for useful in shares]
            for shares in useful_shares(costs, max_batch)
        ]

    def priority(self, stage: int, rows: int, age_ms: float) -> float:
        """Of the batch that a list of so many rows would give."""
        return self._weights[stage][min(rows, self.max_batch)] * age_ms


def by_priority(
    costs: StageCosts, max_batch: int, patience: float = MAX_OVERTAKE_PASSES
) -> BatchingPolicy:
    """What the engine does: the most urgent batch, unless it overtakes one beyond patience."""
    urgency = BatchPriority(costs, max_batch, patience)

    def choose(ready: Ready) -> int:
        best, most = 0, -1.0
        for stage in range(len(ready.rows) - 1, -1, -1):
            if rows := ready.rows[stage]:
                age_ms = ready.now_ms - ready.arrived_ms[stage]
                if (each := urgency.priority(stage, rows, age_ms)) > most:
                    best, most = stage, each
        first = oldest(ready)
        late = ready.arrived_ms[best] - ready.arrived_ms[first] > urgency.patience_ms
        return first if late else best

    return choose


def useful_shares(costs: StageCosts, max_batch: int) -> list[list[float]]:
    """Rows per ms of batches of 0 to `max_batch` rows over the most at that stage, per stage."""
    shares = []
    for stage in range(costs.num_exits):
        rates = [
            rows / max(costs.batch_ms(stage, rows), SMALLEST_MS) for rows in range(max_batch + 1)
        ]
        shares.append([rate / max(rates) for rate in rates])
    return shares


def overdue(ready: Ready, patience_ms: float) -> int | None:
    """The stage behind the first whose head has waited there longest, if beyond patience.

    Rows before the first stage are left out: under overload they wait as long as the queue is, and
    going first they would put every row ahead of those already begun.
    """
    if len(ready.rows) == 1:
        return None
    stage = min(range(1, len(ready.rows)), key=lambda stage: ready.since_ms[stage])
    return stage if ready.now_ms - ready.since_ms[stage] > patience_ms else None


def _pass_ms(costs: StageCosts, max_batch: int) -> float:
    return sum(costs.batch_ms(stage, max_batch) for stage in range(costs.num_exits))


DISCIPLINES: dict[str, Callable[[StageCosts, int], BatchingPolicy]] = {
    "urgent": by_priority,
    "fullest": fullest,
    "largest": lambda costs, max_batch: largest(max_batch),
    "oldest": lambda costs, max_batch: oldest,
    "deepest": lambda costs, max_batch: deepest,
    "shallowest": lambda costs, max_batch: shallowest,
}
DEFAULT_DISCIPLINE = "urgent"
