import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from scheduler.bounds import betting_upper_bound, binomial_upper_bound

Confidences = st.floats(0.01, 0.9999)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("rows", [1, 7, 299, 2000, 100_000])
def test_the_binomial_bound_is_clopper_and_pearsons(rows: int, confidence: float) -> None:
    for events in sorted({0, 1, rows // 100, rows // 3, rows - 1} & set(range(rows))):
        expected = stats.beta.ppf(confidence, events + 1, rows - events)
        found = binomial_upper_bound(events, rows, confidence)
        assert found == pytest.approx(expected, rel=1e-9)
        exact = stats.binomtest(events, rows, alternative="less").proportion_ci(confidence, "exact")
        assert found == pytest.approx(exact.high, rel=1e-6)


def test_299_rows_without_an_event_show_one_percent() -> None:
    assert binomial_upper_bound(0, 299, 0.95) <= 0.01 < binomial_upper_bound(0, 298, 0.95)
    assert binomial_upper_bound(5, 5, 0.95) == 1.0


@given(rows=st.integers(1, 5000), confidence=Confidences, data=st.data())
def test_the_binomial_bound_is_monotone(rows: int, confidence: float, data: st.DataObject) -> None:
    events = data.draw(st.integers(0, rows))
    bound = binomial_upper_bound(events, rows, confidence)
    assert 0 < bound <= 1
    if events < rows:
        assert bound < binomial_upper_bound(events + 1, rows, confidence)
        assert bound <= binomial_upper_bound(events, rows, (1 + confidence) / 2)
        assert bound > binomial_upper_bound(events, rows + 1, confidence)
    if confidence >= 0.5 and events < rows:
        assert bound > events / rows


@pytest.mark.parametrize("rows", [50, 300, 2000])
@pytest.mark.parametrize("share", [0.003, 0.01, 0.2, 0.5])
def test_the_binomial_bound_covers_the_share(rows: int, share: float) -> None:
    events = np.arange(stats.binom.ppf(0.5, rows, share) + 1)  # from there on it is above
    bounds = np.array([binomial_upper_bound(int(count), rows, 0.95) for count in events])
    missed = stats.binom.pmf(events, rows, share)[bounds < share].sum()
    assert missed <= 0.05
    assert missed > 0.005 or (1 - share) ** rows > 0.05  # it is not far from what it may miss


def draws(rng: np.random.Generator, rows: int, loss: float, gain: float) -> NDArray[np.float64]:
    """Values of -1, 0 and 1, as differences of accuracy are."""
    return rng.choice([1.0, 0.0, -1.0], rows, p=[loss, 1 - loss - gain, gain])


@pytest.mark.parametrize(
    ("rows", "loss", "gain"), [(400, 0.02, 0.01), (1000, 0.01, 0.0), (2000, 0.06, 0.05)]
)
def test_the_betting_bound_covers_the_mean(rows: int, loss: float, gain: float) -> None:
    rng = np.random.default_rng(0)
    bounds = [
        betting_upper_bound(draws(rng, rows, loss, gain), 0.95, low=-1, high=1) for _ in range(400)
    ]
    # 400 trials at 5 % are above 32 once in 100.
    assert sum(bound < loss - gain for bound in bounds) <= stats.binom.ppf(0.99, 400, 0.05)
    # It is of use: half a normal interval's width and more would be too much.
    spread = math.sqrt((loss + gain - (loss - gain) ** 2) / rows)
    assert np.median(bounds) < loss - gain + 3.3 * spread


def test_the_betting_bound_holds_for_values_in_between() -> None:
    rng = np.random.default_rng(1)
    bounds = [betting_upper_bound(rng.beta(1, 20, 500), 0.9, low=0, high=1) for _ in range(300)]
    assert sum(bound < 1 / 21 for bound in bounds) <= stats.binom.ppf(0.99, 300, 0.1)
    assert np.median(bounds) < 1.2 / 21


def test_a_naive_bound_would_be_noticed() -> None:
    rng = np.random.default_rng(2)
    missed = sum(draws(rng, 1000, 0.02, 0.01).mean() < 0.01 for _ in range(400))
    assert missed > stats.binom.ppf(0.99, 400, 0.05)


@given(
    values=st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0]), min_size=1, max_size=200),
    confidence=Confidences,
    scale=st.floats(0.1, 10),
    offset=st.floats(-5, 5),
)
@settings(max_examples=60)
def test_the_betting_bound_moves_with_its_values(
    values: list[float], confidence: float, scale: float, offset: float
) -> None:
    array = np.array(values)
    bound = betting_upper_bound(array, confidence, low=-1, high=1)
    assert -1 <= bound <= 1
    moved = betting_upper_bound(
        offset + scale * array, confidence, low=offset - scale, high=offset + scale
    )
    assert moved == pytest.approx(offset + scale * bound, abs=1e-6 * scale)


@given(rows=st.integers(1, 500), confidence=st.floats(0.5, 0.999))
@settings(max_examples=40)
def test_more_rows_without_a_loss_show_more(rows: int, confidence: float) -> None:
    fewer, more = (
        betting_upper_bound(np.zeros(count), confidence, low=-1, high=1)
        for count in (rows, 2 * rows)
    )
    assert 0 < more <= fewer
