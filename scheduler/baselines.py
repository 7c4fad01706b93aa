"""Policies on unlearned confidences: max probability, entropy, patience."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scheduler.confidence import entropy_confidence, max_probability
from scheduler.pixels import pixel_histories, pixels_of, row_histories, row_means
from scheduler.policy import ExitScores, PolicyKind, imported_on_call
from scheduler.thresholds import ThresholdPolicy, threshold_kind

NO_CLASS = -1


@dataclass(frozen=True)
class ConfidencePolicy(ThresholdPolicy):
    """Score = the confidence at this exit alone.

    `maxprob` is the rule of MSDNet (Huang et al. 2018), `entropy` that of BranchyNet
    (Teerapittayanon et al. 2016). `maxprob-opt` and `entropy-opt` have the same scores; only the
    fit of their thresholds differs.
    """

    kind: str

    def start(self, rows: int) -> NDArray[np.float64]:
        """Return an empty history: earlier exits do not matter."""
        return np.empty((rows, 0))

    def needs(self, exit: int, parameter: float) -> bool:
        """Whether a score can reach this exit's threshold; later exits do not read its output."""
        return bool(self.thresholds(parameter)[exit] < np.inf)

    def score(
        self, exit: int, log_probs: NDArray[np.floating], history: NDArray[np.float64]
    ) -> ExitScores:
        """Return the confidence of each row."""
        confidence = entropy_confidence if self.kind.startswith("entropy") else max_probability
        scores = row_means(confidence(pixels_of(log_probs)), len(log_probs))
        return ExitScores(scores, history, history)


@dataclass(frozen=True)
class PatiencePolicy(ThresholdPolicy):
    """Score = number of exits in a row that predicted this class (PABEE, Zhou et al. 2020).

    The max probability is added: it ranks rows of equal runs and never lifts a shorter run above a
    longer one. For rows of P pixels, each pixel has its own run and the score is their mean.
    """

    kind: ClassVar[str] = "patience"

    def start(self, rows: int) -> NDArray[np.float64]:
        """Return a history (rows, 2) of no predicted class and a run of length 0."""
        return np.tile([float(NO_CLASS), 0.0], (rows, 1))

    def score(
        self, exit: int, log_probs: NDArray[np.floating], history: NDArray[np.float64]
    ) -> ExitScores:
        """Return run length plus max probability of each row."""
        num_rows, pixels = len(log_probs), pixels_of(log_probs)
        before = pixel_histories(history, pixels, 2)
        classes = pixels.argmax(1)
        runs = np.where(classes == before[:, 0], before[:, 1], 0.0) + 1
        return ExitScores(
            row_means(runs + max_probability(pixels), num_rows),
            row_histories(np.stack([classes, runs], 1), num_rows),
            np.empty((num_rows, 0)),
        )


def _confidence_kind(name: str, summary: str, colour: str) -> PolicyKind[ConfidencePolicy]:
    return threshold_kind(
        name,
        summary,
        colour,
        fit=partial(imported_on_call("scheduler.fitting.thresholds", "fit_kind"), name),
        make=partial(ConfidencePolicy, kind=name),
    )


MAXPROB = _confidence_kind("maxprob", "the max probability reaches a threshold (MSDNet)", "#000000")
ENTROPY = _confidence_kind("entropy", "the entropy is below a threshold (BranchyNet)", "#e69f00")
MAXPROB_OPT = _confidence_kind(
    "maxprob-opt", "as maxprob, with thresholds optimised for accuracy", "#009e73"
)
ENTROPY_OPT = _confidence_kind(
    "entropy-opt", "as entropy, with thresholds optimised for accuracy", "#cc79a7"
)
PATIENCE = threshold_kind(
    "patience",
    "enough exits in a row predict the same class (PABEE)",
    "#56b4e9",
    fit=imported_on_call("scheduler.fitting.thresholds", "fit_patience_kind"),
    make=PatiencePolicy,
)
