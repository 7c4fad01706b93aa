"""The limit on the rows of a batch."""

import sys

from models.stage_costs import StageCosts
from scheduler.batching import BatchPriority


class BatchLimit:
    """The batch size that is asked for, as far as the device's memory has been seen to allow.

    Args:
        num_exits: Number of exits, K.
        costs: What batches cost; None: as on a device on which every batch takes the same time.
        rows: Batch size asked for at first.
    """

    def __init__(self, num_exits: int, costs: StageCosts | None, rows: int) -> None:
        self._flat_exits = range(1, num_exits + 1)
        self._costs = costs
        self._asked = rows
        self._fits = sys.maxsize

    @property
    def rows(self) -> int:
        """Most rows of a batch."""
        return min(self._asked, self._fits)

    def ask(self, rows: int) -> bool:
        """Ask for larger or smaller batches; return whether that is a change."""
        if rows == self._asked:
            return False
        self._asked = rows
        return True

    def halve(self, rows: int) -> int:
        """Allow half of a batch that did not fit into memory; return how many rows that is."""
        self._fits = min(self._fits, rows // 2)
        return self._fits

    def priority(self) -> BatchPriority:
        """Return the priorities of batches up to the limit."""
        costs = self._costs or StageCosts.of_exits(self._flat_exits, free_rows=self.rows)
        return BatchPriority(costs.table_ms(self.rows))
