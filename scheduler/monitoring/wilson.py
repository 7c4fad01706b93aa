"""How sure a share of a few samples is."""

import math
from typing import NamedTuple

Z_95 = 1.959963984540054  # two-sided


class Interval(NamedTuple):
    """Where a share lies, with confidence."""

    low: float
    high: float


def wilson(successes: int, samples: int, z: float = Z_95) -> Interval:
    """Wilson's score interval of a share; of no samples it is everything.

    Args:
        successes: Of the samples.
        samples: n.
        z: Of the standard normal distribution at the confidence wanted.
    """
    if samples == 0:
        return Interval(0.0, 1.0)
    share, spread = successes / samples, z * z / samples
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / samples + spread / (4 * samples)) / (1 + spread)
    # Rounding must not take an end past what is possible.
    low = 0.0 if successes == 0 else max(middle - half, 0.0)
    return Interval(low, 1.0 if successes == samples else min(middle + half, 1.0))
