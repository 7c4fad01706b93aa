import pytest

from scheduler.control.estimates import CostEstimate


def learned(overhead_ms: float, waiting_ms: float) -> CostEstimate:
    """An estimate of a host twice as slow, with this overhead and the waiting in it."""
    estimate = CostEstimate(2.0)
    for _ in range(1000):
        estimate.update(2.0, 4.0, overhead_ms, waiting_ms, memory=20.0)
    estimate.learn_shift(2.0, 1.0, 20.0)
    return estimate


def test_what_was_learned_fades_towards_the_start() -> None:
    estimate = learned(9.0, 8.0)
    estimate.fade(0.5)
    assert estimate.slowdown == pytest.approx(1.5)
    assert estimate.waiting_ms == pytest.approx(4.0)
    assert estimate.overhead_ms == pytest.approx(4.5)
    estimate.fade(0.0)
    assert (estimate.slowdown, estimate.overhead_ms, estimate.exit_bias_ms) == (1.0, 0.0, 0.0)
    assert estimate.latency_ms(2.0) == 2.0


def test_the_overhead_fades_to_that_of_calm_traffic_where_there_has_been_some() -> None:
    estimate = learned(0.6, 0.0)
    for _ in range(1000):
        estimate.update(2.0, 4.0, 9.0, 7.0, memory=20.0)
    estimate.fade(0.0)
    assert (estimate.waiting_ms, estimate.overhead_ms) == (0.0, pytest.approx(0.6, rel=0.06))
