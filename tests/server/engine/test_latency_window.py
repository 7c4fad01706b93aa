import threading

import numpy as np
import pytest

from server.engine.deadlines import RECENT, RECENT_S, REFRESH_S, LatencyWindow


def of(*seconds: float, now_s: float = 0.0) -> LatencyWindow:
    window = LatencyWindow()
    window.times.extend((now_s, each) for each in seconds)
    return window


def test_before_anything_has_happened_nothing_is_known() -> None:
    assert LatencyWindow().value(0.0) is None


def test_the_first_counts_at_once() -> None:
    window = LatencyWindow()
    assert window.value(0.0) is None
    window.times.append((0.0, 0.5))
    assert window.value(0.0) == 0.5


def test_it_is_the_99th_percentile_of_what_was_added() -> None:
    seconds = np.random.default_rng(0).exponential(size=200)
    assert of(*seconds.tolist()).value(0.0) == pytest.approx(np.percentile(seconds, 99))


def test_a_change_shows_after_a_while() -> None:
    window = of(0.001)
    assert window.value(0.0) == 0.001
    window.times.append((0.0, 1.0))
    assert window.value(0.9 * REFRESH_S) == 0.001
    assert window.value(1.1 * REFRESH_S) == pytest.approx(1.0, rel=0.02)


def test_what_many_others_followed_is_forgotten() -> None:
    assert of(60.0, *[0.001] * RECENT).value(0.0) == 0.001


def test_what_is_long_past_is_forgotten() -> None:
    window = of(60.0)
    assert window.value(RECENT_S) == 60.0
    window.times.append((0.9 * RECENT_S, 0.001))
    assert window.value(RECENT_S + 2 * REFRESH_S) == 0.001
    assert window.value(3 * RECENT_S) is None


def test_workers_may_append_while_others_ask() -> None:
    window, stop = of(0.002), threading.Event()
    errors: list[Exception] = []

    def append() -> None:
        while not stop.is_set():
            window.times.append((0.0, 0.002))

    def ask() -> None:
        try:
            for asked in range(2000):
                # Beyond the refresh every time, so that the window is read while it is written.
                assert window.value(asked * 1e-4 if asked % 2 else 0.0) == pytest.approx(0.002)
        except Exception as error:
            errors.append(error)

    writers, readers = ([threading.Thread(target=each) for _ in range(2)] for each in (append, ask))
    for thread in (*writers, *readers):
        thread.start()
    for thread in readers:
        thread.join()
    stop.set()
    for thread in writers:
        thread.join()
    assert not errors


def test_the_percentile_can_be_another() -> None:
    window = LatencyWindow(50)
    window.times.extend([(0.0, 1.0), (0.0, 2.0), (0.0, 9.0)])
    assert window.value(0.0) == 2.0
