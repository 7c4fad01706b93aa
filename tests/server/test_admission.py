import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Gauge

from server.admission import FEW_SAMPLES, Admission
from server.errors import NotReady, QueueFull


def admission(bound: int, now: list[float]) -> Admission:
    return Admission(bound, Gauge("inflight", "", registry=None), clock=lambda: now[0])


def test_the_bound_counts_samples_not_requests() -> None:
    gate = admission(10, [0.0])
    gate.admit(8)
    with pytest.raises(QueueFull):
        gate.admit(3)
    gate.admit(2)
    assert gate.samples == 10


def test_retry_after_is_the_time_to_drain_at_the_recent_rate() -> None:
    now = [0.0]
    gate = admission(1000, now)
    for _ in range(2000):  # 20 s at 100 samples per second
        gate.admit(1)
        now[0] += 0.01
        gate.release(1)
    gate.admit(1000)
    with pytest.raises(QueueFull) as refused:
        gate.admit(1)
    # An exponential average of 10 s has seen 86 % of the rate after 20 s.
    assert 10 <= int(refused.value.headers["Retry-After"]) <= 13


def test_nothing_is_let_in_while_draining() -> None:
    gate = admission(10, [0.0])
    gate.not_ready = "the server is draining"
    with pytest.raises(NotReady, match="draining"):
        gate.admit(1)


@given(st.lists(st.integers(1, 30), max_size=50))
def test_the_bound_is_never_passed_and_everything_is_given_back(sizes: list[int]) -> None:
    gate, inside = admission(64, [0.0]), []
    for size in sizes:
        try:
            gate.admit(size)
            inside.append(size)
        except QueueFull:
            gate.release(inside.pop()) if inside else None
        assert gate.samples == sum(inside) <= 64


def test_a_sample_that_would_wait_too_long_is_refused() -> None:
    now = [0.0]
    gate = Admission(1000, Gauge("inflight", "", registry=None), lambda: now[0], max_wait_s=1.0)
    for _ in range(2000):  # 20 s at 100 samples per second
        gate.admit(1)
        now[0] += 0.01
        gate.release(1)
    waiting = 0
    while gate.refusal(1) is None:
        gate.admit(1)
        waiting += 1
    assert 90 <= waiting <= 110, "what takes about a second"
    with pytest.raises(QueueFull, match="longer than 1 s") as refused:
        gate.admit(1)
    assert refused.value.headers["Retry-After"] == "2"
    for _ in range(waiting):
        gate.release(1)
    gate.admit(500)  # nothing is before them


def test_few_samples_always_find_a_place() -> None:
    now = [0.0]
    gate = Admission(1000, Gauge("inflight", "", registry=None), lambda: now[0], max_wait_s=0.1)
    for _ in range(10):  # one a second, as slow clients send them
        gate.admit(1)
        now[0] += 1.0
        gate.release(1)
    for _ in range(FEW_SAMPLES):
        gate.admit(1)
    with pytest.raises(QueueFull):
        gate.admit(1)


def test_the_first_answers_of_a_burst_are_no_rate() -> None:
    now = [0.0]
    gate = Admission(1000, Gauge("inflight", "", registry=None), lambda: now[0], max_wait_s=1.0)
    gate.admit(200)
    now[0] += 0.4  # the first batch took so long
    for _ in range(8):
        gate.release(1)
        assert gate.refusal(50) is None
    gate.release(8)
    now[0] += 2.0  # and nothing was answered since: this is slow
    assert gate.refusal(50) is not None
