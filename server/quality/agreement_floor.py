"""Agreement of a model's early exits with its last one, and the floor under it."""

from itertools import islice
from typing import Literal, NamedTuple

import numpy as np

from scheduler.control.controller import BudgetController
from scheduler.monitoring.agreement import AgreementCurve, AgreementFloor
from server.loading import CalibratedPolicy
from server.quality.audit_log import AuditLog

Objective = Literal["budget", "agreement"]


class AgreementTarget(NamedTuple):
    """The operator's settings.

    Attributes:
        minimum: Least agreement of early exits with the last one, or None.
        prefer: Objective that is kept if both cannot be.
    """

    minimum: float | None
    prefer: Objective


class AgreementGuard:
    """Tracks score drift and agreement, and keeps the floor; for the event loop's thread.

    Args:
        scheduler: The active scheduler.
        target: The operator's settings.
    """

    def __init__(self, scheduler: CalibratedPolicy, target: AgreementTarget) -> None:
        self.drift = scheduler.drift
        self.target = target
        self._curve = AgreementCurve(scheduler.policy, scheduler.frontier)
        self._floor = None if target.minimum is None else AgreementFloor(target.minimum)
        self._read = 0  # rows of the log that were read

    def read(self, log: AuditLog) -> None:
        """Read the rows logged since the last call."""
        fresh = list(islice(reversed(log.rows), log.added - self._read))
        self._read = log.added
        if fresh:
            self._curve.add(np.stack([row.log_probs for row in reversed(fresh)], 1))

    def minimum_parameter(self, controller: BudgetController) -> float | None:
        """The parameter to hold now, for all controllers; None: the budget alone decides."""
        if self._floor is None:
            return None
        minimum = self._floor.judge(self._curve, controller.unconstrained_parameter)
        return minimum if self.target.prefer == "agreement" else None

    def agreement(self, parameter: float) -> float | None:
        """Agreement of audited samples that would exit early at a parameter; None without any."""
        agreed = self._curve.at(parameter)
        return agreed.share if agreed.early else None

    def violated_objective(self, controller: BudgetController) -> Objective | None:
        """The objective that is given up for the other at present, or None.

        Without a budget a floor may still be held, but there is nothing to give up for it.
        """
        if self._floor is None or self._floor.held is None or controller.budget_ms is None:
            return None
        if self.target.prefer == "budget":
            return "agreement"
        return "budget" if controller.yields else None
