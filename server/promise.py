"""The promise of a served model: which one is in force, and what keeps it.

A budget, once set, is in command. Without one the promise is about the answers: so many samples at
most get another one than from the whole network. Without that, every sample runs to the last exit.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scheduler.control.controller import BudgetController
from scheduler.guarantee import Certificate, Promise
from scheduler.monitoring.certificate import LiveCertificate
from server.loading import CalibratedPolicy, ServedSchedulers, certification_rows

PromiseKind = Literal["budget", "disagreement", "none"]


class PromiseKeeper:
    """Says which scheduler serves at which parameter, and certifies that of the promise.

    Args:
        schedulers: Those of the model.
        max_disagreement: The promised share of samples, at least 0 and below 1; 0: no promise.
        confidence: Of the certificate.
        audits: Whether samples are audited, which alone can renew the certificate.
    """

    def __init__(
        self,
        schedulers: ServedSchedulers,
        max_disagreement: float,
        confidence: float,
        *,
        audits: bool,
    ) -> None:
        self.max_disagreement, self.confidence = max_disagreement, confidence
        self._audits = audits
        self._audited: list[NDArray[np.float32]] = []  # rows to take, (K, C) or (K, P, C) each
        self._lost = 0
        self.schedulers = schedulers
        self._certificate = self._certify(None)

    def use(self, schedulers: ServedSchedulers) -> None:
        """Serve other schedulers, and certify them: after a withdrawal by audited rows alone."""
        self.schedulers = schedulers
        self._certificate = self._certify(self._certificate)

    def set_max_disagreement(self, share: float) -> None:
        """Promise another share."""
        if share != self.max_disagreement:
            self.max_disagreement = share
            self._certificate.set_promise(self._promise)

    def kind(self, budget_ms: float | None) -> PromiseKind:
        """Return which promise is in force under a budget, or without one."""
        if budget_ms is not None:
            return "budget"
        return "disagreement" if self.max_disagreement > 0 else "none"

    def scheduler(self, budget_ms: float | None) -> CalibratedPolicy:
        """Return the scheduler that serves."""
        is_kept = self.kind(budget_ms) == "disagreement"
        return self.schedulers.keeper if is_kept else self.schedulers.chosen

    def parameter(self, budget_ms: float | None) -> float | None:
        """Return the parameter that keeps the promise; None: nothing may leave early by it."""
        is_kept = self.kind(budget_ms) == "disagreement"
        return self._certificate.parameter if is_kept else None

    def is_withdrawn(self, budget_ms: float | None) -> bool:
        """Whether the promise is in force, and its certificate withdrawn and not renewed yet."""
        return self.kind(budget_ms) == "disagreement" and self._certificate.withdrawn is not None

    def certified(self, budget_ms: float | None) -> Certificate | None:
        """Return the certificate in force; None if there is none."""
        certificate = self._certificate.certificate
        in_force = self.kind(budget_ms) == "disagreement" and certificate.certified
        return certificate if in_force else None

    def renews(self, budget_ms: float | None) -> bool:
        """Whether nothing is certified for the promise in force, and audited samples can do so.

        Then every sample runs to the last exit, so that an audit costs its exit heads at most.
        """
        in_force = self.kind(budget_ms) == "disagreement"
        return in_force and self._audits and self._certificate.parameter is None

    def shortfall(self, budget_ms: float | None) -> str | None:
        """Return why the promise lets nothing leave early; None if it does, or is not in force."""
        if self.kind(budget_ms) != "disagreement" or self._certificate.shortfall is None:
            return None
        remedy = "is audited until these samples certify a point"
        if not self._audits:
            remedy = (
                "with --audit-share 0 none is audited to certify a point; restart with a larger one"
            )
        return f"{self._certificate.shortfall}; every sample runs to the last exit and {remedy}"

    def note_audits(self, rows: Sequence[NDArray[np.float32]], lost: int) -> None:
        """Keep the own outputs of heads for audited rows, and count lost rows, for `review`."""
        self._audited += rows
        self._lost += lost

    def review(self, drift: Sequence[float | None]) -> None:
        """Watch and renew the certificate by what was noted, and by the drift of each exit."""
        audited, self._audited = self._audited, []
        lost, self._lost = self._lost, 0
        if audited:
            own_outputs = np.stack(audited, 1)
            self._certificate.add(self.schedulers.keeper.combiner.combine_all(own_outputs))
        self._certificate.add_lost(lost)
        self._certificate.note_drift(drift)

    def summary(self, controller: BudgetController, measure: str) -> str:
        """Return one sentence about the promise in force: what it keeps and what it costs."""
        point = controller.frontier.at_parameter(controller.parameter)
        cost_ms, whole_ms = controller.present_ms(point.expected_cost_ms), controller.ceiling_ms
        expected = (
            f"expected {cost_ms:.3g} ms, {100 * cost_ms / whole_ms:.0f} % of the whole network, "
            f"{100 * point.expected_accuracy:.1f} % accuracy"
        )
        kind = self.kind(controller.budget_ms)
        if kind == "budget":
            return f"mean {measure} at most {controller.budget_ms:g} ms; {expected}"
        if kind == "none":
            return f"the whole network answers every sample; {expected}"
        return (
            f"at most {100 * self.max_disagreement:g} % of the samples get another answer than "
            f"from the whole network, at {100 * self.confidence:g} % confidence; {expected}"
        )

    def _certify(self, before: LiveCertificate | None) -> LiveCertificate:
        keeper = self.schedulers.keeper
        rows = certification_rows(keeper)
        return LiveCertificate(keeper.policy, keeper.frontier, rows, self._promise, before)

    @property
    def _promise(self) -> Promise | None:
        if self.max_disagreement == 0:
            return None
        return Promise("disagreement", self.max_disagreement, self.confidence)
