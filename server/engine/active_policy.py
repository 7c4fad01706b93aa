"""The policy and parameter in force: one frozen snapshot, swapped by reference."""

from typing import NamedTuple

from scheduler.policy import ExitPolicy


class PolicySnapshot(NamedTuple):
    """A policy, one value of its parameter, and whether each exit's head is needed then, (K,)."""

    policy: ExitPolicy
    parameter: float
    needs: tuple[bool, ...]


class ActivePolicy:
    """A policy whose parameter moves while requests run under it.

    A request keeps the policy it entered with, since its history means nothing to another policy.
    The parameter moves until the engine switches to another policy; requests that are still in
    flight then leave by the last value.

    Args:
        policy: Scores and decides.
        parameter: Initial value of the policy's parameter.

    Attributes:
        snapshot: What is in force now; workers read the reference once per batch.
        has_history: Whether the policy remembers earlier exits.
    """

    def __init__(self, policy: ExitPolicy, parameter: float) -> None:
        self.policy = policy
        self.has_history = policy.start(1).shape[1] > 0
        self.snapshot = self._at(parameter)

    def set(self, parameter: float) -> None:
        """Move the parameter; it applies to every request under this policy at its next exit."""
        if parameter != self.snapshot.parameter:
            self.snapshot = self._at(parameter)

    def _at(self, parameter: float) -> PolicySnapshot:
        needs = [self.policy.needs(exit, parameter) for exit in range(self.policy.num_exits)]
        return PolicySnapshot(self.policy, parameter, tuple(needs))
