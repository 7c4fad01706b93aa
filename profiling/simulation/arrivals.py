"""Random arrival times of samples."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def poisson(rate_per_s: float, count: int, seed: int = 0) -> Array:
    """Arrivals of independent users, with exponential gaps, (N,) in seconds."""
    _check_rate(rate_per_s)
    return np.random.default_rng(seed).exponential(1 / rate_per_s, count).cumsum()


def bursts(
    rate_per_s: float,
    count: int,
    seed: int = 0,
    *,
    factor: float = 4.0,
    period_s: float = 1.0,
    share: float = 0.1,
) -> Array:
    """Poisson arrivals whose rate jumps at the start of every period, (N,) in seconds.

    Args:
        rate_per_s: Mean rate.
        count: N.
        seed: Seed of the gaps.
        factor: Rate in a burst as a multiple of the mean, at most 1 / share.
        period_s: Time from burst to burst.
        share: Share of the period that is a burst.
    """
    _check_rate(rate_per_s)
    if not 1 <= factor <= 1 / share:
        raise ValueError(f"the factor of bursts is {factor}; give one from 1 to {1 / share:g}")
    # Arrivals of a steady stream, moved to where the varying rate has let as many in.
    steady = np.random.default_rng(seed).exponential(1 / rate_per_s, count).cumsum() / period_s
    periods, within = np.divmod(steady, 1.0)
    times: Array = (periods + np.interp(within, [0, share * factor, 1], [0, share, 1])) * period_s
    return times


def at_once(count: int) -> Array:
    """Arrivals all at the start, so that the queue is full until the end, (N,) in seconds."""
    return np.zeros(count)


def _check_rate(rate_per_s: float) -> None:
    if not (np.isfinite(rate_per_s) and rate_per_s > 0):
        raise ValueError(f"the rate is {rate_per_s}; give arrivals per second, above 0")
