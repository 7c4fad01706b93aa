import threading

import numpy as np
import pytest

from server.engine.stage_times import RECENT, RECENT_S, REFRESH, REFRESH_S, LatencyWindow


def of(*seconds: float, now_s: float = 0.0) -> LatencyWindow:
    times = LatencyWindow()
    for each in seconds:
        times.add(each, now_s)
    return times


def test_before_anything_has_happened_nothing_is_known() -> None:
    assert LatencyWindow().p99_s(0.0) is None


def test_the_first_counts_at_once() -> None:
    times = LatencyWindow()
    assert times.p99_s(0.0) is None
    times.add(0.5, 0.0)
    assert times.p99_s(0.0) == 0.5


def test_it_is_the_99th_percentile_of_what_was_added() -> None:
    seconds = np.random.default_rng(0).exponential(size=200)
    assert of(*seconds.tolist()).p99_s(0.0) == pytest.approx(np.percentile(seconds, 99))


def test_a_change_shows_after_some_or_after_a_while() -> None:
    times = of(*[0.001] * REFRESH)
    assert times.p99_s(0.0) == 0.001
    for _ in range(REFRESH - 1):
        times.add(1.0, 0.0)
    assert times.p99_s(0.0) == 0.001
    assert times.p99_s(REFRESH_S + 0.1) == 1.0
    for _ in range(REFRESH):
        times.add(2.0, REFRESH_S)
    assert times.p99_s(REFRESH_S) == 2.0


def test_what_many_others_followed_is_forgotten() -> None:
    assert of(60.0, *[0.001] * RECENT).p99_s(0.0) == 0.001


def test_what_is_long_past_is_forgotten() -> None:
    times = of(60.0)
    assert times.p99_s(RECENT_S) == 60.0
    times.add(0.001, 0.9 * RECENT_S)
    assert times.p99_s(RECENT_S + REFRESH_S + 0.1) == 0.001
    assert times.p99_s(3 * RECENT_S) is None


def test_workers_may_add_while_others_ask() -> None:
    times, stop = of(0.002), threading.Event()
    errors: list[Exception] = []

    def add() -> None:
        while not stop.is_set():
            times.add(0.002, 0.0)

    def ask() -> None:
        try:
            for _ in range(2000):
                assert times.p99_s(0.0) == pytest.approx(0.002)
        except Exception as error:
            errors.append(error)

    adders, askers = ([threading.Thread(target=each) for _ in range(2)] for each in (add, ask))
    for thread in (*adders, *askers):
        thread.start()
    for thread in askers:
        thread.join()
    stop.set()
    for thread in adders:
        thread.join()
    assert not errors
