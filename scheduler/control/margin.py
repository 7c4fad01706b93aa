"""Safety margin: share of the budget held back so that noise does not push the mean above it."""

import math

# Under `BudgetController` the mean of a window has the standard deviation 0.9 sigma sqrt(h) / W
# (measured on plants of independent samples). It exceeds 2.8 of them less than 1 % of the time.
NOISE_GAIN, Z_SCORE = 0.9, 2.8
# In standard deviations; a larger deviation is a change, not noise.
OUTLIER_SIGMAS, MAX_SIGMAS = 2.0, 6.0
MIN_NOISE_SHARE = 0.01  # of the squared deviation: lets the estimate grow from 0
PERIODS = 30.0  # memory of the estimates
RISING_PERIODS = 8.0  # of the excess while it rises: noise that comes and goes is met at once


class Margin:
    """The margin from two noise estimates: of single samples, and of the window's mean.

    The second one also covers samples that are correlated.

    Args:
        least: Smallest margin, as a share of the budget.
        most: Largest margin, as a share of the budget.
    """

    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = least, most
        self._variance = 0.0  # of a sample around its expectation, in ms^2
        self._excess = 0.0  # mean square of the window mean's excess over its target, in ms^2

    def share(self, budget_ms: float, exits_variance: float, horizon: int, room: int) -> float:
        """Return the margin as a share of the budget.

        Args:
            budget_ms: The current budget.
            exits_variance: Variance of a sample's latency due to its exit alone, in ms^2.
            horizon: Number of samples over which credit is spent, h.
            room: Number of samples in the window, W.
        """
        independent_ms = self._deviation_ms(exits_variance, horizon, room)
        deviation_ms = max(independent_ms, math.sqrt(self._excess))
        return min(max(Z_SCORE * deviation_ms / budget_ms, self._least), self._most)

    def learn_period(self, samples: int, off_ms: float, exits_variance: float) -> None:
        """Learn from the difference between the mean of some samples and its expectation."""
        known = max(self._variance, exits_variance, MIN_NOISE_SHARE * off_ms**2)
        seen = min(samples * off_ms**2, OUTLIER_SIGMAS**2 * known)
        self._variance += (seen - self._variance) / PERIODS

    def learn_window(self, over_ms: float, exits_variance: float, horizon: int, room: int) -> None:
        """Learn from the excess of a full window's mean over its target.

        Twice the square, because half of the time the mean is below the target and counts as 0.
        """
        most_ms = MAX_SIGMAS * self._deviation_ms(exits_variance, horizon, room)
        seen = min(2 * max(over_ms, 0.0) ** 2, most_ms**2)
        periods = RISING_PERIODS if seen > self._excess else PERIODS
        self._excess += (seen - self._excess) / periods

    def _deviation_ms(self, exits_variance: float, horizon: int, room: int) -> float:
        variance = max(self._variance, exits_variance)
        return NOISE_GAIN * math.sqrt(variance * horizon) / room
