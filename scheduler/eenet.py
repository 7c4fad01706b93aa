"""EENet (Ilhan et al., "Adaptive Deep Neural Network Inference Optimization", WACV 2024)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scheduler.confidence import entropy_confidence, max_probability, vote
from scheduler.policy import Decision, Scored
from scheduler.thresholds import ThresholdTable

NUM_CONFIDENCES = 3  # max probability, entropy, vote


@dataclass(frozen=True)
class ExitScorer:
    """The linear exit scores q_k = psi_k . [yhat_k, a_k, b_k] (section 3.2).

    Rows are ranked and compared by this unclamped score; it is clamped to [0, 1], as the estimate
    of P(correct) that it is, only where later exits read it as b_k.

    Attributes:
        weights: psi, one array (C + 3 + k,) per exit: class probabilities, the three confidences
            (max probability, entropy, vote), the scores of the exits before.
    """

    weights: tuple[NDArray[np.float64], ...]

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.weights[0]) - NUM_CONFIDENCES

    def start(self, rows: int) -> NDArray[np.float64]:
        """A history (rows, C + K) of no votes and no scores."""
        return np.zeros((rows, self.num_classes + len(self.weights)))

    def features(
        self, exit: int, log_probs: NDArray[np.floating], history: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The inputs [yhat_k, a_k, b_k] (A, C + 3 + k), and the history with this exit's votes."""
        num_classes = self.num_classes
        history = history.copy()
        history[np.arange(len(log_probs)), log_probs.argmax(-1)] += 1
        votes, earlier_scores = (
            history[:, :num_classes],
            history[:, num_classes : num_classes + exit],
        )
        confidences = np.stack(
            [max_probability(log_probs), entropy_confidence(log_probs), vote(votes)], 1
        )
        return np.concatenate(
            [np.exp(log_probs.astype(np.float64)), confidences, earlier_scores], 1
        ), history

    def score(
        self, exit: int, log_probs: NDArray[np.floating], history: NDArray[np.float64]
    ) -> Scored:
        """The unclamped scores (A,) at an exit, and the history with the clamped ones added."""
        inputs, history = self.features(exit, log_probs, history)
        scores = inputs @ self.weights[exit]
        history[:, self.num_classes + exit] = scores.clip(0, 1)
        return Scored(scores, history)


@dataclass(frozen=True)
class EENetPolicy:
    """Learned exit scores against thresholds from a learned exit distribution per budget."""

    kind: ClassVar[str] = "eenet"
    scorer: ExitScorer
    table: ThresholdTable

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.scorer.weights)

    def start(self, rows: int) -> NDArray[np.float64]:
        """A history of no votes and no scores."""
        return self.scorer.start(rows)

    def score(
        self, exit: int, log_probs: NDArray[np.floating], history: NDArray[np.float64]
    ) -> Scored:
        """The unclamped linear score of each row."""
        return self.scorer.score(exit, log_probs, history)

    def decide(
        self, exit: int, scores: NDArray[np.float64], parameters: NDArray[np.float64]
    ) -> Decision:
        """Leave where the score reaches the threshold of the row's own budget."""
        return self.table.decide(exit, scores, parameters)

    def thresholds(self, parameter: float) -> NDArray[np.float64]:
        """The thresholds (K,) at one budget."""
        return self.table.at(parameter)
