"""How many rows a batch may hold."""

import sys

from models.stage_costs import StageCosts
from profiling.simulation.disciplines import BatchPriority


class BatchLimit:
    """What is asked for, as far as memory is known to go.

    Args:
        num_exits: K.
        costs: What batches cost; None: as on a device on which every batch takes the same.
        rows: Asked for at first.
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
        """Ask for larger or smaller batches; whether that is new."""
        if rows == self._asked:
            return False
        self._asked = rows
        return True

    def halve(self, rows: int) -> int:
        """So many did not fit: allow half; how many that is."""
        self._fits = min(self._fits, rows // 2)
        return self._fits

    def urgency(self) -> BatchPriority:
        """What batches up to the limit are worth."""
        costs = self._costs or StageCosts.of_exits(self._flat_exits, free_rows=self.rows)
        return BatchPriority(costs, self.rows)
