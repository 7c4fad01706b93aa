"""The policy, combiner and parameter in force: frozen snapshots, swapped by reference."""

from collections.abc import Sequence
from typing import NamedTuple

from scheduler.combiner import OWN_OUTPUTS, Combiner
from scheduler.policy import ExitPolicy


class PolicySnapshot(NamedTuple):
    """What workers read about a batch's policy.

    Attributes:
        policy: Decides which requests leave.
        parameter: The value of its parameter.
        needs: Whether each exit's head must run, for the policy or for a combination, (K,).
        combiner: Turns the outputs of heads into answers.
        combines: Whether the combiner has to do with each exit, (K,); if not, it costs nothing.
    """

    policy: ExitPolicy
    parameter: float
    needs: tuple[bool, ...]
    combiner: Combiner
    combines: tuple[bool, ...]


class QueuedParameters:
    """Parameters while requests wait, and the snapshots that were made of them so far."""

    def __init__(self, parameters: tuple[float, ...]) -> None:
        self.parameters = parameters
        self.made: dict[int, PolicySnapshot] = {}


class ActivePolicy:
    """A policy, and its combiner, whose parameter moves while requests run under it.

    A request keeps the policy it entered with, since its history means nothing to another policy.
    The parameter moves until the engine switches to another policy; requests that are still in
    flight then leave by the last value.

    Args:
        policy: Scores and decides.
        parameter: Initial value of the policy's parameter.
        combiner: Fitted together with the policy.

    Attributes:
        snapshot: What is in force now where nobody waits; workers read the reference once per
            batch.
        has_history: Whether the policy remembers earlier exits.
        heeds_queue: Whether the parameter depends on how many requests wait.
    """

    def __init__(
        self, policy: ExitPolicy, parameter: float, combiner: Combiner = OWN_OUTPUTS
    ) -> None:
        self.policy = policy
        self.combiner = combiner
        exits = range(policy.num_exits)
        self._combines = tuple([combiner.reads(exit) for exit in exits])
        self.has_history = policy.start(1).shape[1] > 0
        self.snapshot = self._at(parameter)
        self.heeds_queue = False
        self._queued = QueuedParameters(())

    def set(self, parameter: float, queued: Sequence[float] = ()) -> None:
        """Move the parameter; it applies to every request under this policy at its next exit.

        Args:
            parameter: Its new value.
            queued: Its values while 1, 2, ... requests wait for each worker; more of them count as
                the last number. Empty: the number changes nothing.
        """
        if parameter != self.snapshot.parameter:
            self.snapshot = self._at(parameter)
        if tuple(queued) != self._queued.parameters:
            self._queued = QueuedParameters(tuple(queued))
            self.heeds_queue = bool(queued)

    def at(self, waiting: float) -> PolicySnapshot:
        """Return what is in force while so many requests wait for each worker."""
        queued = self._queued  # read once: another thread may replace it
        place = min(int(waiting), len(queued.parameters)) - 1
        if place < 0:
            return self.snapshot
        if place not in queued.made:  # most are not needed before the parameter moves again
            queued.made[place] = self._at(queued.parameters[place])
        return queued.made[place]

    def _at(self, parameter: float) -> PolicySnapshot:
        policy, combiner = self.policy, self.combiner
        needs = [
            combiner.needs(exit) or policy.needs(exit, parameter)
            for exit in range(policy.num_exits)
        ]
        return PolicySnapshot(policy, parameter, tuple(needs), combiner, self._combines)
