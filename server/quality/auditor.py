"""Chooses the samples to audit, follows them through the engine, and books their outcome."""

import math
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from scheduler.combiner import Combiner
from server.engine.request import AuditResult, AuditTrace
from server.metrics import AuditMetrics
from server.quality.audit_log import AuditLog
from server.reports import AuditOutcome

MOST_IN_FLIGHT = 32  # each keeps its network's state in memory


class AuditSampler:
    """Draws a share of one model's samples, on arrival, before their exits are known.

    So the log represents the whole traffic.

    Args:
        share: Share of the samples that are drawn, 0 to 1.
        rng: Random draws.
    """

    def __init__(self, share: float, rng: random.Random) -> None:
        self.share = share
        self._rng = rng

    def draw_gap(self) -> int | None:
        """Draw how many samples pass before the next one is audited; None: no sample ever is.

        The gaps are geometric, so each sample is drawn with the same chance, `share`.
        """
        if self.share <= 0:
            return None
        if self.share >= 1:
            return 0
        return int(math.log(1 - self._rng.random()) / math.log(1 - self.share))


class AuditReport(NamedTuple):
    """What became of samples that were drawn since the last report.

    Attributes:
        outcomes: Audits that have ended.
        skipped: Samples that were not accepted, since too many were in flight.
        cancelled: Accepted samples that got no answer, since their client left.
        lost: Accepted samples whose audit failed; nobody knows what it would have shown.
    """

    outcomes: list[AuditOutcome]
    skipped: int
    cancelled: int
    lost: int


class Auditor:
    """Follows the audits of one engine; any thread may call.

    Every sample that is accepted is finished, on a busy engine too. Whether one is accepted depends
    on how many are in flight when it arrives, never on the sample or on the exit that it takes: the
    audited ones represent all. Those that end at once are accepted in any case: they keep no state
    of the network, and fronts limit their number.

    Attributes:
        on_accept: Called for every accepted sample, before it can be lost.
    """

    def __init__(self) -> None:
        self.on_accept: Callable[[], None] = lambda: None
        self._lock = threading.Lock()  # guards all that follows
        self._in_flight: dict[AuditTrace, int] = {}  # with the policy that each entered under
        self._shadows = 0  # those in flight that keep a state
        self._ended: deque[AuditResult] = deque()
        self._outcomes: list[AuditOutcome] = []
        self._skipped = self._cancelled = self._lost = 0

    @property
    def in_flight(self) -> int:
        """Number of accepted samples that have no outcome and are not given up."""
        return len(self._in_flight)

    def accept(self, trace: AuditTrace, policy_version: int) -> bool:
        """Accept a sample that was drawn, unless too many are in flight."""
        with self._lock:
            if not trace.at_once:
                if self._shadows >= MOST_IN_FLIGHT:
                    self._collect()
                if self._shadows >= MOST_IN_FLIGHT:
                    self._skipped += 1
                    return False
                self._shadows += 1
            self._in_flight[trace] = policy_version
            self.on_accept()
            return True

    def give_up(self, trace: AuditTrace) -> None:
        """Give up a sample whose client has left before it got a prediction."""
        with self._lock:
            self._collect()
            if self._pop(trace) is not None:
                self._cancelled += 1

    def lose(self, trace: AuditTrace) -> None:
        """Count a sample that failed."""
        with self._lock:
            self._drop(trace)

    def note(self, audited: AuditResult) -> None:
        """Take the result of an audit."""
        self._ended.append(audited)

    @property
    def has_news(self) -> bool:
        """Whether `take` would return any; any thread may ask."""
        return bool(self._ended or self._outcomes or self._skipped or self._cancelled or self._lost)

    def take(self) -> AuditReport:
        """Return what has become of samples since the last call."""
        with self._lock:
            self._collect()
            taken = AuditReport(self._outcomes, self._skipped, self._cancelled, self._lost)
            self._outcomes, self._skipped, self._cancelled, self._lost = [], 0, 0, 0
        return taken

    def _drop(self, trace: AuditTrace) -> None:
        if self._pop(trace) is not None:
            self._lost += 1

    def _pop(self, trace: AuditTrace) -> int | None:
        version = self._in_flight.pop(trace, None)
        self._shadows -= version is not None and not trace.at_once
        return version

    def _collect(self) -> None:
        while self._ended:
            trace, log_probs = self._ended.popleft()
            if log_probs is None or trace.exit is None:
                self._drop(trace)
            elif (version := self._pop(trace)) is not None:
                self._outcomes.append(
                    AuditOutcome(trace.key, version, trace.exit, trace.parameter, log_probs)
                )


class AuditJournal:
    """One model's audits, whichever engine ran them.

    Args:
        log: Log of audited samples.
        metrics: Counters of audited and skipped samples.
        share: Share of the samples that are drawn, 0 to 1.
        combiner: Turns the outputs of the heads into answers, under the active policy.
    """

    def __init__(
        self, log: AuditLog, metrics: AuditMetrics, share: float, combiner: Combiner
    ) -> None:
        self.log = log
        self._combiner = combiner
        self.share = share
        self.skipped = self.lost = 0
        self._metrics = metrics
        self._policy_version = 0

    def record(self, outcomes: Iterable[AuditOutcome], skipped: int, lost: int) -> None:
        """Log outcomes; those of an earlier policy left at other exits and are skipped."""
        for outcome in outcomes:
            if outcome.policy_version == self._policy_version:
                self._log(outcome)
                self._metrics.samples[outcome.exit].inc()
            else:
                skipped += 1
        self.skipped += skipped
        self.lost += lost
        self._metrics.skipped.inc(skipped)
        self._metrics.lost.inc(lost)

    def _log(self, outcome: AuditOutcome) -> None:
        """Combine the outputs once, for all that reads the log."""
        answers = self._combiner.combine_all(outcome.log_probs[:, None])[:, 0]
        heads = None if self._combiner.empty else outcome.log_probs
        self.log.add(outcome.key, outcome.exit, outcome.parameter, answers, heads)

    def restart(self, policy_version: int, combiner: Combiner) -> None:
        """Start over for another policy."""
        self._policy_version, self._combiner = policy_version, combiner
        self.log.clear()

    def show(self) -> None:
        """Set the gauges."""
        last = self.log.num_exits - 1
        self._metrics.show([self.log.at(exit).ratio for exit in range(last)])
