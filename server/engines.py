"""The engines that run one model, as control steers them."""

from collections.abc import Sequence
from typing import Protocol

from scheduler.fitted import Scheduler


class Engines(Protocol):
    """The engines that run one model, wherever they are."""

    def set_parameter(self, parameter: float, queued: Sequence[float] = ()) -> None:
        """Move the policy's parameter; arguments as of `ActivePolicy.set`."""

    def set_max_batch(self, rows: int) -> None:
        """Set the most rows of a batch."""

    async def try_scheduler(self, scheduler: Scheduler) -> None:
        """Run one row under another policy.

        Raises:
            ValueError: If that fails.
        """

    def activate(self, scheduler: Scheduler, policy_version: int, parameter: float) -> None:
        """Switch requests that enter from now on to another policy."""

    @property
    def fault(self) -> str | None:
        """Why none of them can answer; None while one works."""

    @property
    def stall(self) -> str | None:
        """Why they should be restarted; None while one makes progress."""
