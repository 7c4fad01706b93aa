"""Chooses the samples to audit and logs their outcome."""

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
    """Chooses a share of one model's samples, and logs the outputs of all exits for them.

    A sample is chosen on arrival, before its exit is known, so that the log represents the whole
    traffic. All methods but `note` belong to the event loop's thread.

    Args:
        log: Log of audited samples.
        metrics: Counters of audited and skipped samples.
        share: Share of the samples that are chosen, 0 to 1.
        rng: Random draws.
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
        """Number of chosen samples that are neither logged nor given up."""
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
            request_id: Id of the request, with its place in a list.
            idle: Returns whether no user's request waits in the engine.
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
        """Give up a sample that got no prediction or was lost."""
        if trail in self._in_flight:
            self._in_flight.remove(trail)
            self._skip()

    def note(self, audited: AuditResult) -> None:
        """Accept the result of an audit; any thread may call this."""
        self._ended.append(audited)

    def flush(self) -> None:
        """Log the results noted since the last call."""
        while self._ended:
            trail, log_probs = self._ended.popleft()
            if log_probs is None or trail.exit is None:
                self.give_up(trail)
            elif trail in self._in_flight:
                self._in_flight.remove(trail)
                self.log.add(trail.key, trail.exit, trail.parameter, log_probs)
                self._metrics.samples[trail.exit].inc()

    def restart(self) -> None:
        """Start over for another policy: results so far say nothing about it."""
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
