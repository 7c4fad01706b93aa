"""Policies on unlearned confidences: max probability, entropy, patience."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scheduler.confidence import entropy_confidence, max_probability
from scheduler.pixels import pixel_histories, pixels_of, row_histories, row_means
from scheduler.policy import Scored
from scheduler.thresholds import ThresholdPolicy

NO_CLASS = -1


@dataclass(frozen=True)
class ConfidencePolicy(ThresholdPolicy):
    """Score = a confidence of this exit alone.

    `maxprob` is the rule of MSDNet (Huang et al. 2018), `entropy` that of BranchyNet
    (Teerapittayanon et al. 2016); `maxprob-opt` and `entropy-opt` score alike and differ in where
    their thresholds come from.
    """

    kind: str

    def start(self, rows: int) -> NDArray[np.float64]:
        """An empty history: earlier exits do not matter."""
        return np.empty((rows, 0))

    def needs(self, exit: int, parameter: float) -> bool:
        """Where its own threshold can be reached: later exits read nothing of it."""
        return bool(self.thresholds(parameter)[exit] < np.inf)

    def score(
        self, exit: int, log_probs: NDArray[np.floating], history: NDArray[np.float64]
    ) -> Scored:
        """The confidence of each row."""
        confidence = entropy_confidence if self.kind.startswith("entropy") else max_probability
        scores = row_means(confidence(pixels_of(log_probs)), len(log_probs))
        return Scored(scores, history, history)


@dataclass(frozen=True)
class PatiencePolicy(ThresholdPolicy):
    """Score = length of the run of equal answers that ends here (PABEE, Zhou et al. 2020).

    Runs of one length are told apart by the max probability, which is added: it never makes a
    shorter run beat a longer one. Of P pixels, each with a run of its own, it is the mean.
    """

    kind: ClassVar[str] = "patience"

    def start(self, rows: int) -> NDArray[np.float64]:
        """A history (rows, 2) of no answer and no run."""
        return np.tile([float(NO_CLASS), 0.0], (rows, 1))

    def score(
        self, exit: int, log_probs: NDArray[np.floating], history: NDArray[np.float64]
    ) -> Scored:
        """Run length plus max probability of each row."""
        num_rows, pixels = len(log_probs), pixels_of(log_probs)
        before = pixel_histories(history, pixels, 2)
        answers = pixels.argmax(1)
        runs = np.where(answers == before[:, 0], before[:, 1], 0.0) + 1
        return Scored(
            row_means(runs + max_probability(pixels), num_rows),
            row_histories(np.stack([answers, runs], 1), num_rows),
            np.empty((num_rows, 0)),
        )


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
        if middle in (low, high):  # no number lies between them
            break
        if distribution @ costs > budget:
            high = middle
        else:
            low = middle
    return distribution
