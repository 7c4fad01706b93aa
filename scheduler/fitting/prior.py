"""Priors: the shares of the classes that a fit is for, where calibration rows have others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

SUM_TOLERANCE = 1e-3
MAX_IMBALANCE = 5.0  # rows of the most frequent class for each of the rarest, until a warning


@dataclass(frozen=True)
class Prior:
    """The share of each class among the samples that will be served.

    Attributes:
        classes: Names of the C classes.
        shares: Positive, summing to 1, (C,).
    """

    classes: tuple[str, ...]
    shares: Array

    def __post_init__(self) -> None:
        if self.shares.shape != (len(self.classes),):
            raise ValueError(
                f"the prior has {self.shares.size} shares for {len(self.classes)} classes; give "
                f"one for each class"
            )
        for name, share in zip(self.classes, self.shares.tolist(), strict=True):
            if not 0 < share <= 1:  # NaN fails too
                raise ValueError(
                    f"the prior gives class {name!r} the share {share:g}; give a share above 0 and "
                    f"at most 1"
                )
        if abs(self.shares.sum() - 1) > SUM_TOLERANCE:
            raise ValueError(
                f"the shares of the prior sum to {self.shares.sum():g}; let them sum to 1"
            )

    @classmethod
    def uniform(cls, classes: Sequence[str]) -> "Prior":
        """Return the prior of equally frequent classes."""
        return cls(tuple(classes), np.full(len(classes), 1 / len(classes)))

    def row_weights(self, labels: Labels, *, all_classes: bool = True) -> Array:
        """Return how many rows each row stands for: the prior's share over the observed one, (N,).

        Their mean is 1.

        Args:
            labels: The class of each row, (N,).
            all_classes: Refuse rows that lack a class. If not, no row stands for that class.

        Raises:
            ValueError: If the rows are those of a segmentation, or lack a class.
        """
        if labels.ndim != 1:
            raise ValueError(
                "a prior is about the class of a whole sample, and a segmentation has one for each "
                "pixel; fit with --prior observed"
            )
        counts = np.bincount(labels, minlength=len(self.classes))
        if all_classes and not counts.all():
            raise ValueError(
                f"no calibration row is of class {self.classes[counts.argmin()]!r}, so the prior "
                f"cannot weight it; calibrate on rows of every class, or fit with --prior observed"
            )
        ratios: Array = self.shares[labels] / counts[labels]
        weights: Array = ratios * (len(labels) / ratios.sum())
        return weights


def imbalance_warning(labels: Labels, classes: Sequence[str]) -> str | None:
    """Describe calibration classes that are more than 5 to 1 apart; None if they are not.

    Args:
        labels: The class of each row, (N,), or of each pixel, (N, P).
        classes: Names of the C classes.
    """
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    rarest, most = int(counts.argmin()), int(counts.argmax())
    if labels.ndim > 1 or counts[most] <= MAX_IMBALANCE * counts[rarest]:
        return None
    shares = [
        f"{classes[each]!r} {100 * counts[each] / counts.sum():.3g} %" for each in (most, rarest)
    ]
    return (
        f"calibration rows are imbalanced: {' and '.join(shares)} of {counts.sum()}; a budget and "
        f"an expected accuracy hold for these shares, so if served samples have others, fit with "
        f"--prior uniform, or --prior FILE with their shares"
    )
