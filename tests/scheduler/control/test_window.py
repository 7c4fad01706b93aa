import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.control.window import RollingWindow


def test_it_holds_the_newest_samples() -> None:
    window = RollingWindow(3, 60.0, 2)
    assert (window.mean_ms, window.exit_rates, len(window)) == (None, None, 0)
    for latency_ms, exit in ((9.0, 0), (1.0, 0), (2.0, 1), (3.0, 1)):
        window.add(0.0, latency_ms, exit, 0.0)
    assert window.mean_ms == 2.0
    assert window.exit_rates == pytest.approx([1 / 3, 2 / 3])
    assert window.is_full and window.capacity == 3


def test_where_few_come_it_has_room_for_those_of_its_age() -> None:
    window = RollingWindow(1000, 60.0, 1)
    for second in range(100):
        window.expire(float(second))
        window.add(float(second), 1.0, 0, 0.0)
    assert window.capacity == len(window) == 61
    assert window.is_full
    window.expire(1e6)
    assert (
        window.capacity == 1000 and not window.is_full
    )  # nothing is known of a window that ran empty


def test_what_stays_for_the_horizon_is_all_but_the_oldest() -> None:
    window = RollingWindow(4, 60.0, 1)
    for credit_ms in (100.0, 1.0, 2.0, 4.0, 8.0):
        window.add(0.0, 1.0, 0, credit_ms)
    assert [window.credit_ms(horizon) for horizon in range(6)] == [15, 14, 12, 8, 0, 0]
    fresh = RollingWindow(10, 60.0, 1)
    fresh.add(0.0, 1.0, 0, 3.0)
    assert fresh.credit_ms(5) == 3.0, "nothing leaves a window that has room"


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e4),
            st.integers(0, 2),
            st.floats(-1e4, 1e4),
            st.sampled_from([0.0, 1.0, 40.0]),
        ),
        max_size=80,
    ),
    st.integers(1, 20),
    st.integers(0, 25),
)
def test_it_is_a_plain_list_of_the_newest(
    samples: list[tuple[float, int, float, float]], size: int, horizon: int
) -> None:
    window, now_s = RollingWindow(size, 60.0, 3), 0.0
    kept: list[tuple[float, float, int, float]] = []
    for latency_ms, exit, credit_ms, wait_s in samples:
        now_s += wait_s
        window.add(now_s, latency_ms, exit, credit_ms)
        window.expire(now_s)
        kept = [*kept, (now_s, latency_ms, exit, credit_ms)][-size:]
        kept = [each for each in kept if now_s - each[0] <= 60.0]
        assert len(window) == len(kept) <= window.capacity <= size
        assert window.mean_ms == pytest.approx(math.fsum(e[1] for e in kept) / len(kept), abs=1e-6)
        stay = kept[max(len(kept) - (window.capacity - horizon), 0) :]
        assert window.credit_ms(horizon) == pytest.approx(math.fsum(e[3] for e in stay), abs=1e-6)


def test_forgiven_samples_keep_their_mean_and_lose_their_credit() -> None:
    window = RollingWindow(size=4, max_age_s=60.0, num_exits=1)
    for latency_ms in (9.0, 9.0):
        window.add(0.0, latency_ms, 0, 1.0 - latency_ms)
    window.forgive()
    assert (window.mean_ms, window.credit_ms(horizon=0)) == (9.0, 0.0)
    for _ in range(3):  # of five samples the window holds four
        window.add(0.0, 0.5, 0, 0.5)
    assert window.credit_ms(horizon=0) == 1.5
    assert window.credit_ms(horizon=2) == 1.0
