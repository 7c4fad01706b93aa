"""A policy at work: what workers read once per batch, and rows keep."""

from typing import NamedTuple

from scheduler.policy import ExitPolicy


class PolicySnapshot(NamedTuple):
    """A policy and a parameter of it, and which heads rows under both need, (K,)."""

    policy: ExitPolicy
    parameter: float
    needs: tuple[bool, ...]


class ActivePolicy:
    """A policy with the parameter that is in force of it.

    A row keeps the one that it entered with, since its history means nothing to another policy. The
    parameter moves until the engine goes on with another policy; the rows that are in then leave by
    the last one.

    Args:
        policy: Scores and decides.
        parameter: Of it.
    """

    def __init__(self, policy: ExitPolicy, parameter: float) -> None:
        self.policy = policy
        self.has_history = policy.start(1).shape[1] > 0
        self._setting = self._at(parameter)

    @property
    def snapshot(self) -> PolicySnapshot:
        """What is in force now: one frozen reference, to be read once per batch."""
        return self._setting

    def set(self, parameter: float) -> None:
        """Move the parameter; every row under this policy meets it at its next exit."""
        if parameter != self._setting.parameter:
            self._setting = self._at(parameter)

    def _at(self, parameter: float) -> PolicySnapshot:
        needs = [self.policy.needs(exit, parameter) for exit in range(self.policy.num_exits)]
        return PolicySnapshot(self.policy, parameter, tuple(needs))
