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
LARGER_ODDS = np.array([1.5, 3.0])  # odds of q over odds of m: bets that the mean is above m
LARGER_STEPS = np.array([0.02, 0.08, 0.3])  # further ones, as shares of the way from m to 1
SMALLEST = 1e-12
AT_START = 0.5  # share of the wealth that is bet from the first row on
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
    wealth is spread over gamblers that begin at different rows: half of it begins at the first, and
    1 / (2 t (t + 1)) at the t-th row after it. One number per bet suffices for all of them.

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
        larger = np.concatenate([odds / (1 + odds), limit + LARGER_STEPS * (1 - limit)])
        self._limit, self._goal = limit, 1 / (1 - confidence)
        self._bets: Array = (larger - limit) / (limit * (1 - limit))
        self._wealth = np.full(len(larger), AT_START)  # of those that have begun, per bet

    def add(self, loss: float) -> bool:
        """Take the loss of the next row, in [0, 1]; return whether the alarm has fired."""
        if self.fired:
            return True
        if self.rows:
            self._wealth += (1 - AT_START) / (self.rows * (self.rows + 1))
        self.rows += 1
        self._wealth *= 1 + self._bets * (loss - self._limit)
        waiting = (1 - AT_START) / self.rows
        self.fired = float(self._wealth.mean()) + waiting >= self._goal
        return self.fired
