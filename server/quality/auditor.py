"""Which samples are audited, and what becomes of them."""

import math
import random
from collections import deque
from collections.abc import Callable

from server.engine.request import AuditResult, AuditTrace
from server.metrics import AuditMetrics
from server.quality.audit_log import AuditLog
from server.quality.feedback import key_of

MOST_IN_FLIGHT = 8


class Auditor:
    """Chooses a share of one model's samples, and logs what all exits say of them.

    A sample is chosen as it comes, whatever exit it will take, so that the log is of the traffic as
    it is. All but `note` belong to the event loop's thread.

    Args:
        log: Of what is audited.
        metrics: Told of every sample.
        share: Of the samples that are chosen, 0 to 1.
        rng: Draws them.
    """

    def __init__(
        self, log: AuditLog, metrics: AuditMetrics, *, share: float, rng: random.Random
    ) -> None:
        self.log = log
        self.share = share
        self.skipped = 0
        self._metrics = metrics
        self._rng = rng
        self._in_flight: set[AuditTrace] = set()
        self._ended: deque[AuditResult] = deque()

    @property
    def in_flight(self) -> int:
        """Samples chosen that have neither been logged nor given up."""
        return len(self._in_flight)

    def draw_gap(self) -> int | None:
        """Draw how many samples pass before the next one is audited; None: no sample ever is.

        The gaps are geometric, so each sample is drawn with the same chance, `share`.
        """
        if self.share <= 0:
            return None
        if self.share >= 1:
            return 0
        return int(math.log(1 - self._rng.random()) / math.log(1 - self.share))

    def choose(self, request_id: str, idle: Callable[[], bool]) -> AuditTrace | None:
        """Audit a sample that was drawn, if the engine has time for it.

        Args:
            request_id: The request's; of a list's item, followed by its place.
            idle: Whether no user's request waits in the engine.
        """
        if len(self._in_flight) >= MOST_IN_FLIGHT:
            self.flush()
        if len(self._in_flight) >= MOST_IN_FLIGHT or not idle():
            self._skip()
            return None
        trail = AuditTrace(key_of(request_id))
        self._in_flight.add(trail)
        return trail

    def give_up(self, trail: AuditTrace) -> None:
        """The sample has not been answered, or cannot be followed any more."""
        if trail in self._in_flight:
            self._in_flight.remove(trail)
            self._skip()

    def note(self, audited: AuditResult) -> None:
        """A sample has been at the last exit or is lost; any thread may say so."""
        self._ended.append(audited)

    def flush(self) -> None:
        """Log what was noted since the last time."""
        while self._ended:
            trail, log_probs = self._ended.popleft()
            if log_probs is None or trail.exit is None:
                self.give_up(trail)
            elif trail in self._in_flight:
                self._in_flight.remove(trail)
                self.log.add(trail.key, trail.exit, trail.parameter, log_probs)
                self._metrics.samples[trail.exit].inc()

    def restart(self) -> None:
        """Another policy is in force: what is known and what is on its way tells nothing of it."""
        self.flush()
        for trail in list(self._in_flight):
            self.give_up(trail)
        self.log.clear()

    def show(self) -> None:
        """Set the gauges."""
        last = self.log.num_exits - 1
        self._metrics.show([self.log.at(exit).ratio for exit in range(last)])

    def _skip(self) -> None:
        self.skipped += 1
        self._metrics.skipped.inc()
