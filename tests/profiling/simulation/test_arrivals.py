import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiling.simulation.arrivals import at_once, bursts, poisson


def test_poisson_arrivals_come_at_the_rate_with_gaps_as_spread_as_long() -> None:
    times = poisson(500.0, 50_000)
    gaps = np.diff(times, prepend=0.0)
    assert times[-1] == pytest.approx(100, rel=0.02)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)
    assert np.array_equal(times, poisson(500.0, 50_000))
    assert not np.array_equal(times, poisson(500.0, 50_000, seed=1))


def test_bursts_keep_the_mean_rate_and_crowd_into_the_start_of_each_period() -> None:
    times = bursts(1000.0, 50_000, factor=5.0, period_s=0.5, share=0.1)
    assert times[-1] == pytest.approx(50, rel=0.03)
    assert ((times % 0.5) < 0.05).mean() == pytest.approx(0.5, abs=0.02)
    assert (np.diff(times) >= 0).all()


@given(st.floats(1, 10), st.floats(0.01, 10), st.integers(0, 99))
def test_bursts_never_go_back_in_time(factor: float, period_s: float, seed: int) -> None:
    times = bursts(200.0, 500, seed, factor=factor, period_s=period_s)
    assert (np.diff(times) >= 0).all() and times[0] >= 0


def test_a_burst_cannot_hold_more_than_everything() -> None:
    with pytest.raises(ValueError, match="give one from 1 to 10"):
        bursts(100.0, 10, factor=11.0)


def test_at_once_is_at_once() -> None:
    assert at_once(3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_must_be_one(rate: float) -> None:
    for make in (poisson, bursts):
        with pytest.raises(ValueError, match="above 0"):
            make(rate, 10)
