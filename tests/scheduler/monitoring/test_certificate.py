"""A certificate that audited rows watch, withdraw and renew."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.guarantee import Promise
from scheduler.monitoring.certificate import LITTLE_DRIFT, MUCH_DRIFT, LiveCertificate
from scheduler.policy import exits_taken, replay
from tests.scheduler.monitoring.test_agreement import audited, toy

Array = NDArray[np.float64]
ONE_PERCENT = Promise("disagreement", 0.01)


def certificate_of(
    rows: Array | None = None,
    promise: Promise | None = ONE_PERCENT,
    before: LiveCertificate | None = None,
) -> LiveCertificate:
    policy, frontier = toy()
    return LiveCertificate(policy, frontier, rows, promise, before)


def kept(rows: int, seed: int) -> Array:
    """Rows of which hardly any is answered otherwise, even if all leave early."""
    return audited(rows, seed, slope=0.004)


def broken(rows: int, seed: int) -> Array:
    return audited(rows, seed, slope=0.4)


def opposed(rows: int, seed: int) -> Array:
    """Rows that are all answered otherwise if they leave early."""
    return audited(rows, seed, slope=1e9)


def leaves_early(certificate: LiveCertificate, rows: Array) -> bool:
    """Whether the parameter lets any row leave before the last exit."""
    policy, _ = toy()
    parameter = certificate.parameter
    used = policy.never_exit_parameter if parameter is None else parameter
    return bool((exits_taken(policy, replay(policy, rows), used) < 2).any())


def test_it_rests_on_the_certification_rows_at_first() -> None:
    certificate = certificate_of(kept(3000, 0))
    shown = certificate.certificate
    assert shown.certified and shown.rows == 3000 and shown.bound <= 0.01
    assert certificate.parameter == shown.parameter
    assert certificate.shortfall is None and leaves_early(certificate, kept(100, 9))


def test_with_too_few_rows_nothing_leaves_early_and_it_says_how_many_are_needed() -> None:
    for rows in (None, kept(200, 0)):
        certificate = certificate_of(rows)
        assert certificate.parameter is None and not certificate.certificate.certified
        assert "at least 299" in str(certificate.shortfall)
        assert not leaves_early(certificate, kept(100, 9))


def test_rows_that_pass_no_point_are_named() -> None:
    certificate = certificate_of(opposed(3000, 0))
    assert certificate.parameter is None
    assert "no point of the frontier is certified by 3000" in str(certificate.shortfall)


def test_audited_rows_certify_where_the_bundle_does_not() -> None:
    certificate = certificate_of(None)
    for seed in range(20):
        certificate.add(kept(100, seed))
    assert certificate.certificate.certified and certificate.certificate.rows == 2000
    assert certificate.shortfall is None


def test_a_broken_promise_is_withdrawn_and_renewed_by_the_rows_that_follow() -> None:
    certificate = certificate_of(kept(3000, 0))
    before = certificate.certificate
    for seed in range(50):
        certificate.add(opposed(20, seed))
    assert certificate.withdrawn is not None and certificate.parameter is None
    assert "withdrawn" in str(certificate.shortfall) and not leaves_early(certificate, kept(99, 9))
    certificate.note_drift([2 * MUCH_DRIFT])  # what was audited before it does not count
    for seed in range(100):
        certificate.add(kept(50, seed))
    renewed = certificate.certificate
    assert certificate.withdrawn is None and renewed.certified and renewed.bound <= 0.01
    assert renewed.expected_cost_ms >= before.expected_cost_ms
    assert renewed.rows == certificate.audited == 5000


def test_lost_rows_count_as_disagreements() -> None:
    certificate = certificate_of(kept(3000, 0))
    certificate.add_lost(0)
    assert certificate.withdrawn is None
    certificate.add_lost(5)
    assert certificate.withdrawn is not None and certificate.parameter is None


def test_drift_withdraws_once_until_scores_were_calm_again() -> None:
    certificate = certificate_of(kept(3000, 0))
    certificate.note_drift([None, None])
    certificate.note_drift([MUCH_DRIFT, None])
    assert certificate.withdrawn is None
    certificate.note_drift([None, 2 * MUCH_DRIFT])
    assert "drifted" in str(certificate.withdrawn) and certificate.parameter is None
    for seed in range(20):
        certificate.add(kept(100, seed))
        certificate.note_drift([2 * MUCH_DRIFT])  # no news: nothing leaves early that could show it
    assert certificate.withdrawn is None and certificate.certificate.certified
    certificate.note_drift([LITTLE_DRIFT])
    certificate.note_drift([2 * MUCH_DRIFT])
    assert certificate.withdrawn is not None and certificate.audited == 0


def test_another_scheduler_does_not_bring_a_withdrawn_promise_back() -> None:
    policy, frontier = toy()

    def replaced(before: LiveCertificate) -> LiveCertificate:
        return LiveCertificate(policy, frontier, kept(3000, 1), ONE_PERCENT, before)

    certificate = replaced(certificate_of(kept(3000, 0)))
    assert certificate.certificate.certified and not certificate.is_doubted
    certificate.add_lost(5)
    certificate = replaced(certificate)
    assert certificate.withdrawn is not None and not leaves_early(certificate, kept(100, 9))
    for seed in range(100):
        certificate.add(kept(50, seed))
    assert certificate.withdrawn is None and certificate.certificate.rows == 5000
    certificate = replaced(certificate)  # the rows of the bundle are still not those of the inputs
    assert certificate.withdrawn is None and certificate.parameter is None
    assert "nothing is certified yet" in str(certificate.shortfall)


def test_another_promise_is_certified_from_the_same_rows() -> None:
    certificate = certificate_of(broken(3000, 0), Promise("disagreement", 0.3))
    loose = certificate.certificate
    certificate.set_promise(Promise("disagreement", 0.05))
    assert certificate.certificate.expected_cost_ms > loose.expected_cost_ms
    certificate.set_promise(None)
    assert certificate.parameter is None and certificate.shortfall is None
    certificate.set_promise(Promise("disagreement", 0.3))
    assert certificate.certificate == loose


def test_at_exactly_the_promised_disagreement_few_are_ever_withdrawn() -> None:
    withdrawn = 0
    for seed in range(40):
        certificate = certificate_of(kept(3000, 0))
        rng = np.random.default_rng(seed)
        assert certificate.parameter is not None
        for _ in range(10):
            certificate._take(
                np.tile(rng.random(300) < 0.01, (len(certificate.points), 1))  # at every point
            )
            withdrawn += certificate.withdrawn is not None
            if certificate.withdrawn is not None:
                break
    assert withdrawn <= 4


def test_pixels_count_by_their_share() -> None:
    policy, frontier = toy()
    rows = kept(800, 0)
    pixels = np.stack([rows, rows], 2)  # (K, N, 2, C)
    certificate = LiveCertificate(policy, frontier, None, ONE_PERCENT)
    certificate.add(pixels)
    other = certificate_of(None)
    other.add(rows)
    assert certificate.certificate == other.certificate


steps = st.lists(
    st.one_of(
        st.tuples(st.just("kept"), st.integers(0, 400)),
        st.tuples(st.just("broken"), st.integers(0, 60)),
        st.tuples(st.just("lost"), st.integers(0, 5)),
        st.tuples(st.just("drift"), st.floats(0, 1)),
        st.tuples(st.just("reload"), st.none()),
        st.tuples(st.just("promise"), st.floats(0, 0.99)),
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(steps, st.integers(0, 3000))
def test_no_stream_lets_anything_leave_early_under_a_withdrawn_certificate(
    steps: list[tuple[str, Any]], rows: int
) -> None:
    certificate, seen = certificate_of(kept(rows, 0)), kept(200, 77)
    for seed, (kind, value) in enumerate(steps):
        if kind in ("kept", "broken"):
            certificate.add((kept if kind == "kept" else broken)(int(value), seed))
        elif kind == "lost":
            certificate.add_lost(int(value))
        elif kind == "drift":
            certificate.note_drift([value, None])
        elif kind == "reload":
            was_withdrawn = certificate.withdrawn
            certificate = certificate_of(kept(rows, 0), ONE_PERCENT, certificate)
            assert certificate.withdrawn == was_withdrawn
        else:
            share = value if value > 1e-6 else None
            certificate.set_promise(None if share is None else Promise("disagreement", share))
        parameter = certificate.parameter
        assert parameter is None or parameter in certificate.points.parameters[:-1]
        if certificate.withdrawn is not None:
            assert parameter is None and not certificate.certificate.certified
            assert not leaves_early(certificate, seen)
        if certificate.certificate.certified:
            assert certificate.certificate.bound <= certificate.certificate.epsilon


@pytest.mark.parametrize("promise", [None, ONE_PERCENT])
def test_nothing_is_certified_before_anything_is_seen(promise: Promise | None) -> None:
    certificate = certificate_of(None, promise)
    assert certificate.parameter is None and certificate.certificate.bound == 0
