import threading

import numpy as np
import pytest

from models.stage_costs import StageCosts
from server.stage_times import RECENT_BATCHES, REFRESH_BATCHES, StageTimes

COSTS = StageCosts((1, 4), np.array([[1.0, 2.5], [10.0, 16.0]]))


def test_before_any_batch_the_costs_of_the_largest_batch_are_expected() -> None:
    for max_batch, expected_s in ((1, [0.001, 0.010]), (4, [0.0025, 0.016]), (3, [0.002, 0.014])):
        times = StageTimes(2, COSTS, max_batch)
        assert [times.slow_s(stage) for stage in range(2)] == pytest.approx(expected_s)


def test_without_costs_nothing_is_expected_before_any_batch() -> None:
    assert StageTimes(3, None, 8).slow_s(2) == 0


def test_the_first_batch_counts_at_once_and_for_its_own_stage_only() -> None:
    times = StageTimes(2, COSTS, 1)
    times.add(0, 0.5)
    assert times.slow_s(0) == 0.5
    assert times.slow_s(1) == pytest.approx(0.010)


def test_it_is_the_99th_percentile_of_what_was_added() -> None:
    times, seconds = StageTimes(1, None, 1), np.random.default_rng(0).exponential(size=200)
    for each in seconds:
        times.add(0, float(each))
    assert times.slow_s(0) == pytest.approx(np.percentile(seconds, 99))


def test_a_change_shows_after_some_batches() -> None:
    times = StageTimes(1, None, 1)
    for _ in range(REFRESH_BATCHES):
        times.add(0, 0.001)
    assert times.slow_s(0) == 0.001
    for _ in range(REFRESH_BATCHES - 1):
        times.add(0, 1.0)
    assert times.slow_s(0) == 0.001
    times.add(0, 1.0)
    assert times.slow_s(0) == 1.0


def test_what_is_long_past_is_forgotten() -> None:
    times = StageTimes(1, None, 1)
    times.add(0, 60.0)
    for _ in range(RECENT_BATCHES):
        times.add(0, 0.001)
    assert times.slow_s(0) == 0.001


def test_workers_may_add_while_others_ask() -> None:
    times, stop = StageTimes(2, COSTS, 1), threading.Event()
    errors: list[Exception] = []

    def add() -> None:
        while not stop.is_set():
            times.add(1, 0.002)

    def ask() -> None:
        try:
            for _ in range(2000):
                assert 0.001 < times.slow_s(1) < 0.011
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
