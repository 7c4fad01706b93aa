"""A certificate that audited rows watch, withdraw and renew while a policy is being served."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scheduler.anytime import RiskAlarm, anytime_upper_bounds
from scheduler.frontier import Frontier
from scheduler.guarantee import (
    MAX_POINTS,
    Certificate,
    FrontierBounds,
    Losses,
    Promise,
    bound_points,
    check_rows,
    losses_along,
)
from scheduler.policy import ExitPolicy

Array = NDArray[np.float64]

MUCH_DRIFT, LITTLE_DRIFT = 0.25, 0.1  # population stability index
BROKEN = "audited samples differ from the whole network more often than promised"
DRIFTED = "exit scores have drifted from those of the calibration set (index {:.2f})"


class LiveCertificate:
    """The cheapest point of a frontier that keeps a promised disagreement, while inputs change.

    At first it rests on the certification rows. Each audited row, drawn before anything is known of
    it, tells whether the point in force would have kept the whole network's answer; so does a row
    that was drawn and lost, which counts as a disagreement. When these rows show that the promise
    is broken (`RiskAlarm`), or when the exit scores drift, the certificate is withdrawn, and the
    certification rows are not believed any more. Then nothing leaves early until the rows audited
    since certify a point by themselves (`anytime_upper_bounds`). They also do so where there are
    too few certification rows to begin with.

    Bounds and alarm hold at every look. A certificate is wrong with a probability of at most
    1 - confidence; it is falsely withdrawn with as much, as long as the promise is kept exactly.

    Args:
        policy: The policy that is served.
        frontier: Its points; if there are many, 32 spread over the cost are tested.
        log_probs: Certification rows, (K, N, C) or (K, N, P, C); None: there are none.
        promise: What to certify, a disagreement; None: nothing.
        before: The certificate of the scheduler that this one replaces. What was found out about
            the inputs holds for every scheduler: if it was withdrawn once, the certification rows
            are not believed here either.

    Attributes:
        points: The points that are tested.
        certificate: The cheapest certified point.
        withdrawn: Why the certificate was withdrawn; None if it was not, or has been renewed.
        is_doubted: Whether it was ever withdrawn, so that certification rows are not believed.
        audited: Rows audited since the start or the last withdrawal.
    """

    def __init__(
        self,
        policy: ExitPolicy,
        frontier: Frontier,
        log_probs: NDArray[np.floating] | None,
        promise: Promise | None,
        before: Self | None = None,
    ) -> None:
        self.points = frontier.spread(MAX_POINTS)
        self.withdrawn: str | None = None if before is None else before.withdrawn
        self.is_doubted: bool = before is not None and before.is_doubted
        self._policy = policy
        self._recorded: Losses | None = None  # of the certification rows, as long as believed
        if log_probs is not None and log_probs.shape[1] and not self.is_doubted:
            self._recorded = losses_along(policy, self.points, log_probs)
        self._is_calm = True  # whether drift that is much would be news
        self._forget_audits()
        self.set_promise(promise)

    def set_promise(self, promise: Promise | None) -> None:
        """Certify another promise from the same rows."""
        self._promise = promise
        self._recorded_bounds: Array | None = None
        if promise is not None and self._recorded is not None:
            recorded = self._recorded
            self._recorded_bounds = bound_points(
                len(self.points), lambda place: recorded[place], promise
            )
        self._start_alarm()
        self._certify()

    @property
    def parameter(self) -> float | None:
        """The policy's parameter to use; None: every row must run to the last exit."""
        return self.certificate.parameter if self.certificate.certified else None

    @property
    def shortfall(self) -> str | None:
        """Why nothing may leave early; None if something may, or nothing is promised."""
        if self._promise is None or self.certificate.certified:
            return None
        if self.withdrawn is not None:
            return (
                f"the promise is withdrawn: {self.withdrawn}; {self.audited} samples were audited "
                f"since"
            )
        rows = 0 if self._recorded is None else self._recorded.shape[1]
        try:
            check_rows(self._promise, max(rows, self.audited), exact=True)
        except ValueError as error:
            return f"nothing is certified yet: {error}"
        return (
            f"no point of the frontier is certified by {rows} certification rows and "
            f"{self.audited} audited samples"
        )

    def add(self, log_probs: NDArray[np.floating]) -> None:
        """Take audited rows, (K, n, C) or (K, n, P, C)."""
        if log_probs.shape[1]:
            self._take(losses_along(self._policy, self.points, log_probs))

    def add_lost(self, count: int) -> None:
        """Take rows that were drawn and lost: each counts as a disagreement."""
        if count:
            losses = np.ones((len(self.points), count), np.bool_)
            losses[-1] = False  # where nothing leaves early, nothing can differ
            self._take(losses)

    def note_drift(self, indices: Sequence[float | None]) -> None:
        """Withdraw the certificate if an exit's population stability index has become large."""
        drift = max([index for index in indices if index is not None], default=None)
        if drift is None:
            return
        if drift <= LITTLE_DRIFT:
            self._is_calm = True
        elif drift > MUCH_DRIFT and self._is_calm:
            self._is_calm = False
            self._withdraw(DRIFTED.format(drift))

    def _take(self, losses: Losses) -> None:
        """Watch the point in force on rows (G, n), in their order, then certify anew."""
        rows = losses.shape[1]
        if self.certificate.certified:
            place = self.points.nearest(self.certificate.parameter)
            for row, loss in enumerate(losses[place].tolist()):
                if self._alarm.add(float(loss)):
                    self._withdraw(BROKEN)
                    losses = losses[:, row + 1 :]  # the others count already for its renewal
                    break
        self.audited += losses.shape[1]
        self._audited_losses += losses.sum(1)
        if rows:
            self._certify()

    def _withdraw(self, reason: str) -> None:
        self.withdrawn, self.is_doubted = reason, True
        self._recorded = self._recorded_bounds = None
        self._forget_audits()
        self._certify()

    def _forget_audits(self) -> None:
        self.audited = 0
        self._audited_losses = np.zeros(len(self.points))

    def _start_alarm(self) -> None:
        if self._promise is not None:
            self._alarm = RiskAlarm(self._promise.epsilon, self._promise.confidence)

    def _certify(self) -> None:
        """Certify by the certification rows, or, where these certify nothing, by the audited ones.

        One of them at a time: the cheaper of two would be wrong more often than either.
        """
        rows = 0 if self._recorded is None else self._recorded.shape[1]
        self.certificate = self._by(rows, self._recorded_bounds)
        if self._promise is None or self.certificate.certified:
            return
        bounds = anytime_upper_bounds(self._audited_losses, self.audited, self._promise.confidence)
        bounds[-1] = 0.0
        self.certificate = self._by(self.audited, bounds)
        if self.certificate.certified and self.withdrawn is not None:
            self.withdrawn = None
            self._start_alarm()

    def _by(self, rows: int, bounds: Array | None) -> Certificate:
        """Return the cheapest point that bounds (G,) certify; None: they certify nothing."""
        if bounds is None or self._promise is None:
            bounds = np.append(np.full(len(self.points) - 1, np.inf), 0.0)
        epsilon = 0.0 if self._promise is None else self._promise.epsilon
        confidence = 1.0 if self._promise is None else self._promise.confidence
        never_exit = self._policy.never_exit_parameter
        return FrontierBounds(self.points, never_exit, confidence, rows, bounds).certify(epsilon)
