"""Bounds and alarms that hold at every look."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.anytime import RiskAlarm, anytime_upper_bounds
from scheduler.bounds import binomial_upper_bound
from scheduler.monitoring.agreement import wilson

STREAMS, ROWS = 100, 5000
WILSON_99, WINDOW, MIN_EARLY = 2.326348, 1000, 30


def streams(risk: float, seed: int, rows: int = ROWS) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return (rng.random((STREAMS, rows)) < risk).astype(float).tolist()


def alarmed_at(losses: list[float], limit: float) -> int | None:
    alarm = RiskAlarm(limit, 0.95)
    return next((row + 1 for row, loss in enumerate(losses) if alarm.add(loss)), None)


def wilson_at(losses: list[float], limit: float) -> int | None:
    """The test before: a 99 % interval of the latest thousand rows, looked at again and again."""
    lost = np.cumsum([0.0, *losses])
    for row in range(MIN_EARLY, len(losses) + 1):
        rows = min(row, WINDOW)
        if wilson(rows - int(lost[row] - lost[row - rows]), rows, WILSON_99).high < 1 - limit:
            return row
    return None


@pytest.mark.parametrize("limit", [0.01, 0.02])
def test_at_exactly_the_limit_at_most_5_percent_of_streams_are_ever_alarmed(limit: float) -> None:
    alarmed = [alarmed_at(losses, limit) for losses in streams(limit, seed=1)]
    assert sum(row is not None for row in alarmed) <= 0.05 * STREAMS


@pytest.mark.parametrize("limit", [0.005, 0.01, 0.05])
def test_a_miss_of_2_points_is_found_in_at_most_3_times_the_rows_of_the_test_before(
    limit: float,
) -> None:
    missed = streams(limit + 0.02, seed=2)
    ours, theirs = (
        np.median([find(losses, limit) or np.inf for losses in missed])
        for find in (alarmed_at, wilson_at)
    )
    assert ours <= 3 * theirs


def test_a_change_is_found_however_late_it_comes() -> None:
    rng = np.random.default_rng(3)
    for start in (100, 10_000):
        alarm = RiskAlarm(0.01, 0.95)
        assert not any(alarm.add(float(rng.random() < 0.003)) for _ in range(start))
        found = next(row for row in range(10**5) if alarm.add(float(rng.random() < 0.05)))
        assert found < 600


def test_what_was_seen_before_an_alarm_never_undoes_it() -> None:
    alarm = RiskAlarm(0.01, 0.95)
    for _ in range(50):
        alarm.add(1.0)
    assert alarm.fired and all(alarm.add(0.0) for _ in range(1000))


def test_where_nothing_may_be_lost_one_loss_is_enough() -> None:
    alarm = RiskAlarm(0.0, 0.95)
    assert not any(alarm.add(0.0) for _ in range(1000))
    assert alarm.add(1.0)


@given(st.lists(st.floats(0, 1), max_size=200), st.floats(0, 0.99), st.floats(0.01, 0.999))
def test_shares_of_a_loss_are_taken_too(
    losses: list[float], limit: float, confidence: float
) -> None:
    alarm = RiskAlarm(limit, confidence)
    fired = [alarm.add(loss) for loss in losses]
    assert fired == sorted(fired)  # once fired, it stays so
    if all(loss <= limit for loss in losses):
        assert not alarm.fired


def bound(losses: float, rows: int, confidence: float = 0.95) -> float:
    return float(anytime_upper_bounds(np.array([losses], float), rows, confidence)[0])


def test_the_bound_covers_the_true_mean_at_all_looks_at_once() -> None:
    risk = 0.01
    lost = np.cumsum(streams(risk, seed=4), axis=1)  # (STREAMS, ROWS)
    lowest = np.ones(STREAMS)
    for rows in np.unique(np.geomspace(1, ROWS, 200).astype(int)).tolist():
        lowest = np.minimum(lowest, anytime_upper_bounds(lost[:, rows - 1], rows, 0.95))
    assert (lowest < risk).mean() <= 0.05


@given(st.integers(0, 3000), st.floats(0, 1), st.floats(0.5, 0.999))
def test_the_bound_lies_between_mean_and_1_and_above_that_of_one_look(
    rows: int, share: float, confidence: float
) -> None:
    losses = int(share * rows)
    upper = bound(losses, rows, confidence)
    assert upper <= 1 and (rows == 0 or upper > losses / rows - 1e-6)
    if rows:
        assert upper >= binomial_upper_bound(losses, rows, confidence) - 1e-6


@given(st.integers(1, 2000), st.floats(0, 1), st.floats(0, 1))
def test_the_bound_rises_with_the_losses_and_points_are_bounded_alike(
    rows: int, first: float, second: float
) -> None:
    losses = np.array([first, second, first]) * rows
    uppers = anytime_upper_bounds(losses, rows, 0.95)
    assert uppers[0] == uppers[2] == bound(losses[0], rows)
    low, high = sorted([(losses[0], uppers[0]), (losses[1], uppers[1])])
    assert low[1] <= high[1] + 1e-9


def test_no_rows_bound_nothing_and_many_bound_closely() -> None:
    assert bound(0, 0) == pytest.approx(1)
    assert bound(0, 482) < 0.01 < bound(0, 300)
    assert bound(500, 100_000) < 0.006
