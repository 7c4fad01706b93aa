import random

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from prometheus_client import CollectorRegistry

from scheduler.combiner import OWN_OUTPUTS
from server.engine.request import AuditResult, AuditTrace
from server.metrics import AuditFamilies, AuditMetrics
from server.quality.audit_log import AuditLog
from server.quality.auditor import MOST_IN_FLIGHT, AuditJournal, Auditor, AuditSampler
from server.reports import AuditOutcome

SAID = np.log(np.array([[0.7, 0.3], [0.2, 0.8]], np.float32))
KEY = 17


def sampler_of(share: float, seed: int = 0) -> AuditSampler:
    return AuditSampler(share, random.Random(seed))


def journal_of(registry: CollectorRegistry | None = None) -> AuditJournal:
    metrics = AuditMetrics(AuditFamilies(registry or CollectorRegistry(), ["model"]), ["pets"], 2)
    return AuditJournal(AuditLog(2), metrics, 1.0, OWN_OUTPUTS)


def left(trace: AuditTrace, exit: int = 0) -> AuditResult:
    trace.exit, trace.parameter = exit, 0.5
    return AuditResult(trace, SAID)


def accepted(auditor: Auditor, version: int = 0) -> AuditTrace:
    trace = AuditTrace(KEY)
    assert auditor.accept(trace, version)
    return trace


def outcome(exit: int = 0, version: int = 0) -> AuditOutcome:
    return AuditOutcome(KEY, version, exit, 0.5, SAID)


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_so_large_a_share_is_drawn(share: float) -> None:
    sampler = sampler_of(share)
    gaps = [sampler.draw_gap() for _ in range(20_000)]
    drawn = len(gaps) / (len(gaps) + sum(gap for gap in gaps if gap is not None))
    assert drawn == pytest.approx(share, rel=0.03)


def test_nothing_is_drawn_of_no_share() -> None:
    assert sampler_of(0.0).draw_gap() is None


def test_the_same_seed_draws_the_same() -> None:
    def gaps(seed: int) -> list[int | None]:
        sampler = sampler_of(0.5, seed)
        return [sampler.draw_gap() for _ in range(50)]

    assert gaps(1) == gaps(1) != gaps(2)


def test_no_more_are_in_flight_than_the_bound() -> None:
    auditor = Auditor()
    traces = [accepted(auditor) for _ in range(MOST_IN_FLIGHT)]
    assert not auditor.accept(AuditTrace(KEY), 0)
    auditor.note(left(traces[0]))
    assert auditor.accept(AuditTrace(KEY), 0), "what has ended makes room"
    assert auditor.in_flight == MOST_IN_FLIGHT


def test_those_that_end_at_once_are_all_accepted_and_take_no_place() -> None:
    auditor = Auditor()
    at_once = [AuditTrace(KEY, at_once=True) for _ in range(2 * MOST_IN_FLIGHT)]
    assert all(auditor.accept(trace, 0) for trace in at_once)
    traces = [accepted(auditor) for _ in range(MOST_IN_FLIGHT)]
    assert not auditor.accept(AuditTrace(KEY), 0)
    for trace in at_once[1:]:
        auditor.note(left(trace))
    auditor.give_up(at_once[0])
    assert not auditor.accept(AuditTrace(KEY), 0)
    auditor.lose(traces[0])
    auditor.lose(traces[0])
    accepted(auditor)
    assert not auditor.accept(AuditTrace(KEY), 0)


def test_what_is_given_up_has_no_outcome() -> None:
    auditor = Auditor()
    trace = accepted(auditor)
    auditor.give_up(trace)
    auditor.give_up(trace)
    auditor.note(left(trace))
    assert auditor.take() == ([], 0, 1, 0)


def test_what_fails_is_lost_wherever_it_does() -> None:
    auditor = Auditor()
    auditor.lose(accepted(auditor))
    auditor.note(AuditResult(accepted(auditor), None))
    assert auditor.take() == ([], 0, 0, 2)
    assert not auditor.has_news


def test_an_audit_that_has_ended_is_not_given_up_any_more() -> None:
    auditor = Auditor()
    trace = accepted(auditor)
    auditor.note(left(trace))
    auditor.give_up(trace)
    assert len(auditor.take().outcomes) == 1


def test_an_outcome_names_the_policy_that_its_sample_entered_under() -> None:
    auditor = Auditor()
    auditor.note(left(accepted(auditor, version=3), exit=1))
    ((ended,), *others) = auditor.take()
    assert (ended.key, ended.policy_version, ended.exit, others) == (KEY, 3, 1, [0, 0, 0])


def test_a_sample_is_logged_under_its_request_and_exit() -> None:
    registry = CollectorRegistry()
    journal = journal_of(registry)
    journal.record([outcome(exit=1)], skipped=2, lost=3)
    assert [(row.request_key, row.exit) for row in journal.log.rows] == [(KEY, 1)]
    samples = [
        registry.get_sample_value("eenet_audit_samples_total", {"model": "pets", "exit": exit})
        for exit in "01"
    ]
    assert samples == [0, 1]
    assert journal.skipped == 2
    assert registry.get_sample_value("eenet_audit_skipped_total", {"model": "pets"}) == 2
    assert journal.lost == 3
    assert registry.get_sample_value("eenet_audit_lost_total", {"model": "pets"}) == 3


def test_outcomes_of_another_policy_are_skipped() -> None:
    journal = journal_of()
    journal.record([outcome()], skipped=0, lost=0)
    journal.restart(1, OWN_OUTPUTS)
    assert not journal.log.rows
    journal.record([outcome(version=0), outcome(version=1)], skipped=0, lost=0)
    assert (len(journal.log.rows), journal.skipped) == (1, 1)


def test_the_gauge_is_nan_before_any_and_then_the_agreement() -> None:
    registry = CollectorRegistry()
    journal = journal_of(registry)

    def shown() -> float | None:
        journal.show()
        return registry.get_sample_value(
            "eenet_audit_agreement_ratio", {"model": "pets", "exit": "0"}
        )

    assert np.isnan(shown())
    journal.record([outcome()], skipped=0, lost=0)
    assert shown() == 0
    last = {"model": "pets", "exit": "1"}
    assert registry.get_sample_value("eenet_audit_agreement_ratio", last) is None


class Audits(RuleBasedStateMachine):
    """Every sample drawn is in flight, ended, skipped, cancelled or lost, and only one of these."""

    def __init__(self) -> None:
        super().__init__()
        self.auditor = Auditor()
        self.auditor.on_accept = self.accept
        self.drawn = self.accepted = self.settled = self.skipped = 0
        self.traces: list[AuditTrace] = []

    def accept(self) -> None:
        self.accepted += 1

    @rule(count=st.integers(1, 8))
    def come(self, count: int) -> None:
        for _ in range(count):
            self.drawn += 1
            trace = AuditTrace(KEY)
            if self.auditor.accept(trace, 0):
                self.traces.append(trace)

    @precondition(lambda self: self.traces)
    @rule(data=st.data(), lost=st.booleans())
    def end(self, data: st.DataObject, lost: bool) -> None:
        trace = data.draw(st.sampled_from(self.traces))
        trace.exit = 0
        self.auditor.note(AuditResult(trace, None if lost else SAID))

    @precondition(lambda self: self.traces)
    @rule(data=st.data(), fails=st.booleans())
    def leave(self, data: st.DataObject, fails: bool) -> None:
        trace = data.draw(st.sampled_from(self.traces))
        (self.auditor.lose if fails else self.auditor.give_up)(trace)

    @invariant()
    def nothing_is_lost(self) -> None:
        ended, skipped, cancelled, lost = self.auditor.take()
        self.settled += len(ended) + cancelled + lost
        self.skipped += skipped
        assert self.drawn == self.accepted + self.skipped
        assert self.accepted == self.auditor.in_flight + self.settled
        assert self.auditor.in_flight <= MOST_IN_FLIGHT


def test_nothing_that_was_drawn_is_lost_from_the_count() -> None:
    run_state_machine_as_test(Audits)
