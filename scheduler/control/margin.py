"""What is left of a budget unspent, so that chance does not take the window's mean above it."""

import math

# The mean of a window that is steered by `BudgetController` strays by 0.9 sigma sqrt(h) / W
# (measured on plants of independent samples); more than so many times that it strays in less than
# 1 % of the time.
NOISE_GAIN, Z_SCORE = 0.9, 2.8
OUTLIER_SIGMAS, MAX_SIGMAS = (
    2.0,
    6.0,
)  # standard deviations; what is further off is a change, not noise
MIN_NOISE_SHARE = 0.01  # of what was seen: from no noise at all it can be learned
PERIODS = 30.0  # of memory


class Margin:
    """Follows the noise: of single samples, and of the window's mean where they hang together.

    Args:
        least: Share of the budget.
        most: Share of the budget.
    """

    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = least, most
        self._variance = 0.0  # of a sample beside what was expected, in ms^2
        self._strayed = 0.0  # mean square of what the window's mean was above what was promised

    def share(self, budget_ms: float, exits_variance: float, horizon: int, room: int) -> float:
        """Of the budget.

        Args:
            budget_ms: In force.
            exits_variance: Of a sample's latency from its exit alone, in ms^2.
            horizon: Samples over which credit is spent, h.
            room: Samples of the window, W.
        """
        independent_ms = self._straying_ms(exits_variance, horizon, room)
        straying_ms = max(independent_ms, math.sqrt(self._strayed))
        return min(max(Z_SCORE * straying_ms / budget_ms, self._least), self._most)

    def learn_period(self, samples: int, off_ms: float, exits_variance: float) -> None:
        """Take in by how much the mean of some samples was off what was expected of them."""
        known = max(self._variance, exits_variance, MIN_NOISE_SHARE * off_ms**2)
        seen = min(samples * off_ms**2, OUTLIER_SIGMAS**2 * known)
        self._variance += (seen - self._variance) / PERIODS

    def learn_window(self, over_ms: float, exits_variance: float, horizon: int, room: int) -> None:
        """Take in by how much the mean of a full window is above what was promised.

        Half of the time it strays to the other side, where it does no harm.
        """
        most_ms = MAX_SIGMAS * self._straying_ms(exits_variance, horizon, room)
        seen = min(2 * max(over_ms, 0.0) ** 2, most_ms**2)
        self._strayed += (seen - self._strayed) / PERIODS

    def _straying_ms(self, exits_variance: float, horizon: int, room: int) -> float:
        variance = max(self._variance, exits_variance)
        return NOISE_GAIN * math.sqrt(variance * horizon) / room
