import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.control.traffic import REPORT_S, Traffic


def steady(gap_s: float, samples: int = 200) -> Traffic:
    """Traffic with a sample each so many seconds."""
    traffic = Traffic()
    for number in range(samples):
        traffic.pass_time(number * gap_s)
        traffic.add(1)
    return traffic


@pytest.mark.parametrize("gap_s", [0.001, 0.1, 1.0])
def test_the_usual_gap_is_learned(gap_s: float) -> None:
    assert steady(gap_s).gap_s == pytest.approx(gap_s, rel=0.01)


def test_samples_reported_together_have_gaps_like_others() -> None:
    traffic = Traffic()
    for number in range(100):
        traffic.pass_time(number * 0.25)
        traffic.add(5)
    assert traffic.gap_s == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize(("gap_s", "patience_s"), [(0.001, REPORT_S), (1.0, 3.0)])
def test_rest_begins_after_a_gap_that_is_longer_than_usual(gap_s: float, patience_s: float) -> None:
    traffic = steady(gap_s)
    last_s = 199 * gap_s
    assert traffic.pass_time(last_s + 0.9 * patience_s) == 0
    assert traffic.pass_time(last_s + patience_s + 1) == pytest.approx(1, rel=0.05)
    assert traffic.pass_time(last_s + patience_s + 3) == pytest.approx(2)
    assert traffic.rested_s == pytest.approx(3, rel=0.02)
    traffic.add(1)
    assert traffic.rested_s == 0


def test_before_the_first_sample_nothing_rests() -> None:
    traffic = Traffic()
    assert [traffic.pass_time(now_s) for now_s in (5.0, 500.0)] == [0, 0]
    assert not traffic.is_current


def test_a_step_back_counts_as_no_time() -> None:
    traffic = steady(0.1)
    before_s = traffic.now_s
    assert traffic.pass_time(-1e6) == 0
    assert traffic.now_s == before_s
    traffic.pass_time(-1e6 + 0.2)
    assert traffic.now_s == pytest.approx(before_s + 0.2)


@given(st.lists(st.tuples(st.floats(), st.integers(0, 5))))
def test_no_times_make_it_lose_its_way(told: list[tuple[float, int]]) -> None:
    traffic, last_s = Traffic(), 0.0
    for now_s, samples in told:
        assert 0 <= traffic.pass_time(now_s) < math.inf
        assert last_s <= traffic.now_s < math.inf
        last_s = traffic.now_s
        if samples:
            traffic.add(samples)
        assert 0 <= traffic.gap_s < math.inf
