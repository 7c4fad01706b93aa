"""What one model's samples tell of its exits under the scheduler in force, and the floor kept."""

from itertools import islice
from typing import Literal, NamedTuple

import numpy as np

from scheduler.control.controller import BudgetController
from scheduler.monitoring.agreement import AgreementCurve, AgreementFloor
from server.loading import CalibratedPolicy
from server.quality.audit_log import AuditLog

Objective = Literal["budget", "agreement"]


class AgreementTarget(NamedTuple):
    """What an operator asked for.

    Attributes:
        minimum: Least agreement of early exits with the last, or None.
        prefer: Which of the two promises is kept where both cannot be.
    """

    minimum: float | None
    prefer: Objective


class AgreementGuard:
    """Score drift, agreement and its floor; the event loop's thread.

    Args:
        scheduler: In force.
        asked: By the operator.
    """

    def __init__(self, scheduler: CalibratedPolicy, asked: AgreementTarget) -> None:
        self.drift = scheduler.drift
        self.target = asked
        self._curve = AgreementCurve(scheduler.policy, scheduler.frontier)
        self._floor = None if asked.minimum is None else AgreementFloor(asked.minimum)
        self._read = 0  # rows of the log

    def read(self, log: AuditLog) -> None:
        """Take in what was logged under this scheduler since the last time."""
        fresh = list(islice(reversed(log.rows), log.added - self._read))
        self._read = log.added
        if fresh:
            self._curve.add(np.stack([row.log_probs for row in reversed(fresh)], 1))

    def minimum_parameter(self, controller: BudgetController) -> float | None:
        """The parameter to hold now, for all controllers; None: the budget has its way."""
        if self._floor is None:
            return None
        held = self._floor.judge(self._curve, controller.unconstrained_parameter)
        return held if self.target.prefer == "agreement" else None

    def agreement(self, parameter: float) -> float | None:
        """Of audited samples that would leave early at a parameter; None if none would."""
        agreed = self._curve.at(parameter)
        return agreed.share if agreed.early else None

    def violated_objective(self, controller: BudgetController) -> Objective | None:
        """Which of the two promises gives way to the other at present."""
        if self._floor is None or self._floor.held is None:
            return None
        if self.target.prefer == "budget":
            return "agreement"
        return "budget" if controller.yields else None
