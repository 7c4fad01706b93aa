"""Tests of a bounded mean that hold at every look, however often and whenever one looks.

Both are wealths of a gambler who starts with 1 and bets against a mean. If the mean is as claimed,
the wealth ever reaches 1 / (1 - confidence) with a probability of at most 1 - confidence (Ville).
Losses lie in [0, 1]. The bets against a mean m are likelihood ratios of Bernoulli(q) to
Bernoulli(m), mixed over some q.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SMALLER = np.array([0.05, 0.2, 0.4, 0.6, 0.8])  # q / m of the bets that the mean is below m
# Bets that the mean is above m: one on a little more of it, as odds of q over odds of m, others as
# shares of the way from m to 1. Most of the wealth is on a miss of some two points.
LARGER_ODDS, LARGER_STEPS = 1.6, np.array([0.02, 0.06, 0.25])
STAKES = np.array([0.1, 0.7, 0.1, 0.1])
SMALLEST = 1e-12
RESERVE = 1.25  # factor on the wealth that fires: shares that are counted scatter around their mean
AT_START = 0.9  # share of the wealth that is bet from the first row on
STEPS = 30  # of bisection


def anytime_upper_bounds(losses: Array, rows: int, confidence: float) -> Array:
    """Return upper confidence bounds of mean losses, each valid at every number of rows at once.

    A bound is the smallest m against which the wealth

        K(m) = mean over c of  c^losses ((1 - c m) / (1 - m))^(rows - losses)

    reaches 1 / (1 - confidence); K rises with m. Sums suffice: for a loss x in [0, 1], the factor
    is at most the bet 1 + (x - m)(q - m) / (m (1 - m)) with q = c m, whose mean is at most 1
    wherever the mean loss is at least m.

    Args:
        losses: Sums of the losses of the same rows, (G,).
        rows: Number of rows.
        confidence: Above 0 and below 1.

    Returns:
        (G,).
    """
    goal = -math.log1p(-confidence)
    lost, spared = losses[:, None], (rows - losses)[:, None]
    below, above = np.zeros(len(losses)), np.ones(len(losses))
    for _ in range(STEPS):
        middle = (below + above) / 2
        mean = middle[:, None]
        logs = lost * np.log(SMALLER) + spared * np.log((1 - SMALLER * mean) / (1 - mean))
        top = logs.max(1)
        refuted = top + np.log(np.exp(logs - top[:, None]).mean(1)) >= goal
        above, below = np.where(refuted, middle, above), np.where(refuted, below, middle)
    return above


class RiskAlarm:
    """Fires once losses have become larger on average than was claimed.

    If the mean loss of every row, given the rows before it, is at most the limit, it ever fires
    with a probability of at most 1 - confidence. So that a change is found whenever it comes, the
    wealth is spread over gamblers that begin at different rows: nine tenths of it at the first, and
    1 / (10 t (t + 1)) at the t-th row after it. One number per bet suffices for all of them.

    Args:
        limit: The claimed mean loss, at least 0 and below 1.
        confidence: Above 0 and below 1.

    Attributes:
        rows: Rows seen.
        fired: Whether it has fired; it stays so.
    """

    def __init__(self, limit: float, confidence: float) -> None:
        self.rows = 0
        self.fired = False
        limit = max(limit, SMALLEST)
        odds = LARGER_ODDS * limit / (1 - limit)
        larger = np.array([odds / (1 + odds), *(limit + LARGER_STEPS * (1 - limit))])
        self._limit, self._goal = limit, RESERVE / (1 - confidence)
        self._bets: list[float] = ((larger - limit) / (limit * (1 - limit))).tolist()
        self._stakes: list[float] = STAKES.tolist()
        self._wealth = [AT_START * stake for stake in self._stakes]  # of those that have begun

    def add(self, loss: float) -> bool:
        """Take the loss of the next row, in [0, 1]; return whether the alarm has fired."""
        if self.fired:
            return True
        beginning = (1 - AT_START) / (self.rows * (self.rows + 1)) if self.rows else 0.0
        excess = loss - self._limit
        self.rows += 1
        # Plain numbers: with arrays of four, a row would take five times as long.
        self._wealth = [
            (wealth + beginning * stake) * (1 + bet * excess)
            for wealth, stake, bet in zip(self._wealth, self._stakes, self._bets, strict=True)
        ]
        self.fired = sum(self._wealth) + (1 - AT_START) / self.rows >= self._goal
        return self.fired
