"""Which recorded rows leave at which exit, for every value of a policy's parameter."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.frontier import Frontier
from scheduler.policy import ExitPolicy, replay

Leaves = Sequence[bytes]
"""Whether each of N rows leaves, 0 or 1, by exit; the last exit is left out, (K - 1, N)."""


class ExitTable(NamedTuple):
    """Decisions of a policy about recorded rows at each of the G points of its frontier.

    Bytes are the fastest to look up one at a time, which a simulation does for every row.
    """

    frontier: Frontier
    leaves: Sequence[Leaves]

    @classmethod
    def of(
        cls, policy: ExitPolicy, frontier: Frontier, log_probs: NDArray[np.floating]
    ) -> "ExitTable":
        """Replay a policy on recorded rows, (K, N, C)."""
        replayed = replay(policy, log_probs)[:-1]
        return cls(
            frontier,
            [
                [
                    policy.decide(exit, scored, np.array([value])).leave.tobytes()
                    for exit, scored in enumerate(replayed)
                ]
                for value in frontier.parameters.tolist()
            ],
        )

    def at(self, parameter: float) -> Leaves:
        """Return the decisions at the point whose parameter is nearest."""
        return self.leaves[self.frontier.nearest(parameter)]


def never_leave(num_exits: int, rows: int) -> Leaves:
    """Return the decisions of a network that runs every row to its end."""
    return [bytes(rows)] * (num_exits - 1)
