"""Refusals: each is counted, and the log has at most one line a second for each reason."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from server.errors import ServeError

log = logging.getLogger(__name__)

LOG_EVERY_S = 1.0  # for each reason


class RequestCounts(Protocol):
    """Counts answers and refusals, for metrics."""

    def observe_request(self, route: str, status: int) -> None:
        """Count one answered request."""

    def count_rejected(self, reason: str) -> None:
        """Count a request, or a sample of one, that was turned away."""


class NoCounts:
    """Counts nothing."""

    def observe_request(self, route: str, status: int) -> None:
        """Do nothing."""

    def count_rejected(self, reason: str) -> None:
        """Do nothing."""


class RefusalLog:
    """Counts what is refused and why, and writes it to the log. For one thread.

    All that refuses in a process shares one, so that a flood costs one line a second wherever it is
    stopped.

    Args:
        counts: Counts every refusal.
        clock: Seconds, monotonic.

    Attributes:
        counts: As given.
    """

    def __init__(
        self,
        counts: RequestCounts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts: RequestCounts = counts or NoCounts()
        self._clock = clock
        self._logged_s: dict[str, float] = {}  # when a reason was last in the log
        self._left_out: Counter[str] = Counter()  # of the log, since then

    def record(self, reason: str, sentence: str) -> None:
        """Record a refusal.

        Args:
            reason: What metrics call it.
            sentence: What the client reads, or what was done to it.
        """
        self.counts.count_rejected(reason)
        now_s = self._clock()
        if now_s - self._logged_s.get(reason, -math.inf) < LOG_EVERY_S:
            self._left_out[reason] += 1
            return
        self._logged_s[reason] = now_s
        left_out = self._left_out.pop(reason, 0)
        more = f" (and {left_out} more since the last such line)" if left_out else ""
        log.warning("refused, %s: %s%s", reason, sentence, more)

    def record_error(self, error: ServeError) -> None:
        """Record an error that refuses a request at a bound, whatever its class."""
        self.record(error.reason or error.code, error.detail)

    def record_if_refusal(self, error: ServeError) -> None:
        """Record the answer to a request if it is a refusal: one whose error has a reason."""
        if error.reason is not None:
            self.record(error.reason, error.detail)
