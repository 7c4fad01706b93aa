"""A fitted policy replayed on recorded samples at every point of its frontier."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.frontier import Frontier
from scheduler.policy import ExitPolicy, ExitScores, replay


class PolicyReplay(NamedTuple):
    """A policy on a host, and its decisions for recorded samples.

    Attributes:
        policy: The fitted policy.
        frontier: Its frontier at the host's costs.
        replayed: Scores of N samples, one entry per exit, K of them.
        leave: Whether each sample leaves at each exit at each point of the frontier, (G, K - 1, N).
    """

    policy: ExitPolicy
    frontier: Frontier
    replayed: Sequence[ExitScores]
    leave: NDArray[np.bool_]

    @classmethod
    def of(
        cls, policy: ExitPolicy, frontier: Frontier, log_probs: NDArray[np.floating]
    ) -> "PolicyReplay":
        """Replay recorded samples (K, N, C)."""
        replayed = replay(policy, log_probs)
        leave = np.stack(
            [
                np.stack(
                    [
                        policy.decide(exit, scored, np.array([value])).leave
                        for exit, scored in enumerate(replayed[:-1])
                    ]
                )
                for value in frontier.parameters.tolist()
            ]
        )
        return cls(policy, frontier, replayed, leave)

    def static_exits(self, points: int = 60) -> NDArray[np.int8]:
        """The exit of every sample at some points of the frontier, (points, N)."""
        leave = self.leave[np.linspace(0, len(self.leave) - 1, points).round().astype(int)]
        ends = np.ones((len(leave), 1, leave.shape[2]), np.bool_)
        exits: NDArray[np.int8] = np.concatenate([leave, ends], 1).argmax(1).astype(np.int8)
        return exits
