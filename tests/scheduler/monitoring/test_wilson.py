import numpy as np
import pytest

from scheduler.monitoring.agreement import wilson


@pytest.mark.parametrize(
    ("hits", "trials", "z", "low", "high"),
    [
        (0, 0, 1.96, 0.0, 1.0),
        (8, 10, 1.96, 0.4902, 0.9433),  # as tables have it
        (0, 20, 1.96, 0.0, 0.1611),
        (20, 20, 1.96, 0.8389, 1.0),
        (950, 1000, 2.326348, 0.9315, 0.9637),
    ],
)
def test_wilson(hits: int, trials: int, z: float, low: float, high: float) -> None:
    found = wilson(hits, trials, z)
    assert found == pytest.approx((low, high), abs=2e-4)


def test_wilson_covers_what_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = rng.binomial(300, 0.97, 4000)
    inside = [low <= 0.97 <= high for low, high in (wilson(int(h), 300) for h in hits)]
    assert 0.93 < np.mean(inside) < 0.975
