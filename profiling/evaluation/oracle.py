"""What no policy can beat: exits chosen by one who knows the labels."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROUNDING = 1e-9


def oracle_exits(correct: Array, costs_ms: Array, budget: float) -> NDArray[np.intp]:
    """The exits that buy most right answers for the budget: an upper bound.

    From the first exit on every row goes where a right answer is cheapest, the cheapest steps of
    all rows first, as long as the budget pays; rows that gain nothing leave at once. Where answers
    are right in part, more could be right by less than one row's gain.

    Args:
        correct: How much of each row each exit has right, in [0, 1], (N, K).
        costs_ms: Rising costs (K,).
        budget: At least the first.
    """
    right, rows = correct.astype(np.float64), np.arange(len(correct))
    ends, prices = [np.zeros(len(rows), np.intp)], [np.zeros(len(rows))]  # of every step, (N,) each
    for _ in costs_ms[1:]:
        gains, extra = right - right[rows, ends[-1], None], costs_ms - costs_ms[ends[-1], None]
        of_one = np.full(right.shape, np.inf)  # ms for a right answer more, (N, K)
        np.divide(extra, gains, out=of_one, where=(gains > 0) & (extra > 0))
        best = of_one.argmin(1)
        prices.append(np.maximum(prices[-1], of_one[rows, best]))
        ends.append(np.where(np.isfinite(prices[-1]), best, ends[-1]))
    order = np.argsort(np.ravel(prices), kind="stable")
    spent = np.diff(costs_ms[np.stack(ends)], axis=0, prepend=costs_ms[0]).ravel()
    paid = order[np.cumsum(spent[order]) <= (budget - costs_ms[0]) * len(rows) * (1 + ROUNDING)]
    exits = np.zeros(len(rows), np.intp)
    np.maximum.at(exits, paid % len(rows), np.ravel(ends)[paid])
    return exits
