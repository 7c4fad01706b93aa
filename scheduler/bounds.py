"""Upper confidence bounds of a share and of a bounded mean, valid for any number of rows."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAX_BET = 0.75  # share of the wealth that one row can lose (c in Waudby-Smith & Ramdas)
BINOMIAL_STEPS, BETTING_STEPS = 60, 24  # of bisection


@lru_cache(maxsize=4096)
def binomial_upper_bound(events: int, rows: int, confidence: float) -> float:
    """Return the exact one-sided upper bound of a share (Clopper & Pearson 1934).

    It is the share p at which so few events, P(X <= events | rows, p), have the probability
    1 - confidence.

    Args:
        events: Number of rows with the event.
        rows: All rows, at least 1.
        confidence: Above 0 and below 1.
    """
    if events >= rows:
        return 1.0
    counts = np.arange(events + 1)
    log_choose = np.zeros(events + 1)
    log_choose[1:] = np.cumsum(np.log((rows + 1 - counts[1:]) / counts[1:]))

    def is_too_likely(share: float) -> bool:
        terms = log_choose + counts * math.log(share) + (rows - counts) * math.log1p(-share)
        return float(np.exp(terms).sum()) > 1 - confidence

    below, above = 0.0, 1.0
    for _ in range(BINOMIAL_STEPS):
        middle = (below + above) / 2
        if middle < 1 and is_too_likely(middle):
            below = middle
        else:
            above = middle
    return above


def betting_upper_bound(values: Array, confidence: float, *, low: float, high: float) -> float:
    """Return an upper confidence bound of a bounded mean, by betting.

    Against each possible mean m, a gambler bets that values are smaller:
    K_t(m) = prod_{i <= t} (1 - lambda_i (x_i - m)). If m is the mean, K is a non-negative
    martingale, which ever reaches 1 / (1 - confidence) with a probability of at most 1 - confidence
    (Ville). The bound is the smallest m against which it does. Bets are the predictable plug-in
    lambda_t = sqrt(2 log(1 / (1 - confidence)) / (n var_{t-1})), cut at c / (1 - m)
    (Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", 2024).

    Args:
        values: Independent draws in [low, high], in an order that does not depend on them, (N,).
        confidence: Above 0 and below 1.
        low: Smallest possible value.
        high: Largest possible value.
    """
    scaled = (values - low) / (high - low)
    goal = -math.log1p(-confidence)
    bets = _predictable_bets(scaled, goal)

    def is_refuted(mean: float) -> bool:
        gains = np.minimum(bets, MAX_BET / (1 - mean)) * (mean - scaled)
        return bool(np.cumsum(np.log1p(gains)).max() >= goal)

    below, above = 0.0, 1.0
    for _ in range(BETTING_STEPS):  # the wealth rises with m
        middle = (below + above) / 2
        if is_refuted(middle):
            above = middle
        else:
            below = middle
    return low + (high - low) * above


def _predictable_bets(scaled: Array, goal: float) -> Array:
    """Return the bet on each row, from the rows before it, (N,).

    Args:
        scaled: Values in [0, 1], (N,).
        goal: Logarithm of the wealth to reach.
    """
    rows = len(scaled)
    counts = np.arange(2, rows + 2)  # one row more than seen: a prior of mean 1/2, variance 1/4
    means = (0.5 + np.cumsum(scaled)) / counts
    variances = (0.25 + np.cumsum((scaled - means) ** 2)) / counts
    before = np.concatenate([[0.25], variances[:-1]])
    bets: Array = np.sqrt(2 * goal / (rows * before))
    return bets
