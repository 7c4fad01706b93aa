"""Fits the schedulers of a variant: several policies side by side, each under its name."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bundle import LABEL_FREE
from profiling.calibration import Predictions
from scheduler.eenet import EENetPolicy
from scheduler.fitted import Scheduler
from scheduler.fitting.fit import fit_scheduler, last_predictions
from scheduler.fitting.prior import Prior, imbalance_warning
from scheduler.policies import DEFAULT_POLICY

log = logging.getLogger(__name__)


class FitKind(NamedTuple):
    """What is fitted: a policy of `POLICIES`, to labels or to the last exit's answers."""

    policy: str
    label_free: bool = False

    @property
    def name(self) -> str:
        """The scheduler's name in a bundle."""
        return self.policy + (LABEL_FREE if self.label_free else "")


SIDE_BY_SIDE = (FitKind(DEFAULT_POLICY), FitKind(DEFAULT_POLICY, label_free=True), FitKind("eenet"))
"""What every build fits: the default, the one that keeps answers, and the paper's policy."""


def fit_kind(
    kind: FitKind,
    calibration: Predictions,
    costs_ms: NDArray[np.float64],
    *,
    prior: Prior | None,
    seed: int,
    published: EENetPolicy | None = None,
    label_sets: bool = False,
) -> Scheduler:
    """Fit one scheduler to calibration rows, for the class shares of a prior.

    Args:
        kind: What to fit.
        calibration: The rows.
        costs_ms: Latency from the start until each exit, (K,).
        prior: Shares of the classes; label-free: of the last exit's answers, where those that it
            never gives do not count. None: those of the rows.
        seed: As in `fit_scheduler`.
        published: As in `fit_scheduler`.
        label_sets: As in `Frontier`.

    Raises:
        ValueError: If the rows do not fit together, or lack a class of the prior.
    """
    weights = None
    if prior is not None:
        classes = _classes_of(kind, calibration)
        weights = prior.row_weights(classes, all_classes=not kind.label_free)
    scheduler = fit_scheduler(
        kind.policy,
        calibration.log_probs,
        None if kind.label_free else calibration.labels,
        costs_ms,
        weights,
        seed=seed,
        published=published,
    )
    return scheduler._replace(frontier=replace(scheduler.frontier, label_sets=label_sets))


def warn_of_imbalance(kind: FitKind, calibration: Predictions, classes: Sequence[str]) -> None:
    """Log a warning if some classes have many more calibration rows than others."""
    warning = imbalance_warning(_classes_of(kind, calibration), classes)
    if warning is not None:
        log.warning("%s", warning)


def _classes_of(kind: FitKind, calibration: Predictions) -> NDArray[np.int64]:
    """What each row counts as: its label, or the last exit's answer."""
    return last_predictions(calibration.log_probs) if kind.label_free else calibration.labels
