"""The simplest policy: leave at the first exit that is sure enough."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scheduler.confidence import max_probability
from scheduler.policy import Decision, Scored
from scheduler.thresholds import ThresholdTable


@dataclass(frozen=True)
class MaxProbPolicy:
    """Score = largest class probability, the rule of MSDNet (Huang et al. 2018)."""

    kind: ClassVar[str] = "maxprob"
    table: ThresholdTable

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.table.thresholds[0])

    def start(self, rows: int) -> NDArray[np.float64]:
        """An empty history: earlier exits do not matter."""
        return np.empty((rows, 0))

    def score(
        self, exit: int, log_probs: NDArray[np.floating], history: NDArray[np.float64]
    ) -> Scored:
        """The largest class probability of each row."""
        return Scored(max_probability(log_probs), history)

    def decide(
        self, exit: int, scores: NDArray[np.float64], parameters: NDArray[np.float64]
    ) -> Decision:
        """Leave where the score reaches the threshold of the row's own budget."""
        return self.table.decide(exit, scores, parameters)

    def thresholds(self, parameter: float) -> NDArray[np.float64]:
        """The thresholds (K,) at one budget."""
        return self.table.at(parameter)


def geometric_distribution(costs: NDArray[np.float64], budget: float) -> NDArray[np.float64]:
    """The exit distribution p_k proportional to q^k that costs the budget (MSDNet, 5.2).

    Args:
        costs: Rising costs (K,).
        budget: Between the first and the last of them.

    Returns:
        p (K,); all at the first or the last exit at the ends of the range.
    """
    if budget <= costs[0] or budget >= costs[-1]:
        ends = np.zeros(len(costs))
        ends[0 if budget <= costs[0] else -1] = 1.0
        return ends
    low, high = -700.0, 700.0  # of log q; e^700 is the largest that float64 holds
    for _ in range(200):
        middle = (low + high) / 2
        exponents = middle * np.arange(len(costs))
        weights = np.exp(exponents - exponents.max())
        distribution: NDArray[np.float64] = weights / weights.sum()
        if distribution @ costs > budget:
            high = middle
        else:
            low = middle
    return distribution
