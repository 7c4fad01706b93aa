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

from server.engine.request import AuditResult, AuditTrace
from server.metrics import AuditFamilies, AuditMetrics
from server.quality.audit_log import AuditLog
from server.quality.auditor import MOST_IN_FLIGHT, Auditor
from server.quality.feedback import key_of

SAID = np.log(np.array([[0.7, 0.3], [0.2, 0.8]], np.float32))


def auditor_of(
    share: float = 1.0, seed: int = 0, registry: CollectorRegistry | None = None
) -> Auditor:
    metrics = AuditMetrics(AuditFamilies(registry or CollectorRegistry()), "pets", 2)
    return Auditor(AuditLog(2), metrics, share=share, rng=random.Random(seed))


def left(trail: AuditTrace, exit: int = 0) -> AuditResult:
    trail.exit, trail.parameter = exit, 0.5
    return AuditResult(trail, SAID)


def chosen(auditor: Auditor, slack: bool = True) -> AuditTrace:
    trail = auditor.choose("a", lambda: slack)
    assert trail is not None
    return trail


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_so_large_a_share_is_drawn(share: float) -> None:
    auditor = auditor_of(share)
    gaps = [auditor.draw_gap() for _ in range(20_000)]
    drawn = len(gaps) / (len(gaps) + sum(gap for gap in gaps if gap is not None))
    assert drawn == pytest.approx(share, rel=0.03)


def test_nothing_is_drawn_of_no_share() -> None:
    assert auditor_of(0.0).draw_gap() is None


def test_the_same_seed_draws_the_same() -> None:
    def gaps(seed: int) -> list[int | None]:
        auditor = auditor_of(0.5, seed)
        return [auditor.draw_gap() for _ in range(50)]

    assert gaps(1) == gaps(1) != gaps(2)


def test_without_slack_samples_are_skipped_and_counted() -> None:
    registry = CollectorRegistry()
    auditor = auditor_of(registry=registry)
    assert auditor.choose("a", lambda: False) is None
    assert auditor.skipped == 1 and auditor.in_flight == 0
    assert registry.get_sample_value("eenet_audit_skipped_total", {"model": "pets"}) == 1


def test_no_more_are_in_flight_than_the_bound() -> None:
    auditor = auditor_of()
    trails = [chosen(auditor) for _ in range(MOST_IN_FLIGHT)]
    assert auditor.choose("a", lambda: True) is None and auditor.skipped == 1
    auditor.note(left(trails[0]))
    assert auditor.choose("a", lambda: True) is not None, "what has ended makes room"
    assert auditor.in_flight == MOST_IN_FLIGHT


def test_a_sample_is_logged_under_its_request_and_exit() -> None:
    registry = CollectorRegistry()
    auditor = auditor_of(registry=registry)
    trail = auditor.choose("abc/1", lambda: True)
    assert trail is not None
    auditor.note(left(trail, exit=1))
    auditor.flush()
    assert [(row.request_key, row.exit) for row in auditor.log.rows] == [(key_of("abc/1"), 1)]
    samples = [
        registry.get_sample_value("eenet_audit_samples_total", {"model": "pets", "exit": exit})
        for exit in "01"
    ]
    assert samples == [0, 1]


def test_what_is_given_up_is_never_logged() -> None:
    auditor = auditor_of()
    trail = chosen(auditor)
    auditor.give_up(trail)
    auditor.give_up(trail)
    auditor.note(left(trail))
    auditor.flush()
    assert not auditor.log.rows and (auditor.skipped, auditor.in_flight) == (1, 0)


def test_the_gauge_is_nan_before_any_and_then_the_agreement() -> None:
    registry = CollectorRegistry()
    auditor = auditor_of(registry=registry)

    def shown() -> float | None:
        auditor.show()
        return registry.get_sample_value(
            "eenet_audit_agreement_ratio", {"model": "pets", "exit": "0"}
        )

    assert np.isnan(shown())
    auditor.note(left(chosen(auditor)))
    auditor.flush()
    assert shown() == 0
    last = {"model": "pets", "exit": "1"}
    assert registry.get_sample_value("eenet_audit_agreement_ratio", last) is None


class Audits(RuleBasedStateMachine):
    """Every sample drawn is in flight, logged or skipped, and only one of these."""

    def __init__(self) -> None:
        super().__init__()
        self.auditor, self.drawn, self.logged = auditor_of(), 0, 0
        self.trails: list[AuditTrace] = []
        self.policy: list[AuditTrace] = []  # chosen under the present policy

    @rule(slack=st.booleans())
    def come(self, slack: bool) -> None:
        self.drawn += 1
        before = len(self.auditor.log.rows)
        trail = self.auditor.choose("a", lambda: slack)
        self.logged += len(self.auditor.log.rows) - before
        if trail is not None:
            self.trails.append(trail)

    @precondition(lambda self: self.trails)
    @rule(data=st.data(), lost=st.booleans())
    def end(self, data: st.DataObject, lost: bool) -> None:
        trail = data.draw(st.sampled_from(self.trails))
        trail.exit = 0
        self.auditor.note(AuditResult(trail, None if lost else SAID))

    @precondition(lambda self: self.trails)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.auditor.give_up(data.draw(st.sampled_from(self.trails)))

    @rule()
    def count(self) -> None:
        before = len(self.auditor.log.rows)
        self.auditor.flush()
        self.logged += len(self.auditor.log.rows) - before

    @rule()
    def swap(self) -> None:
        self.count()
        self.auditor.restart()
        assert not self.auditor.log.rows and not self.auditor.in_flight

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.drawn == self.auditor.in_flight + self.logged + self.auditor.skipped
        assert self.auditor.in_flight <= MOST_IN_FLIGHT


def test_nothing_that_was_drawn_is_lost_from_the_count() -> None:
    run_state_machine_as_test(Audits)
