"""Recorded predictions as a combiner turns them into answers."""

from typing import NamedTuple

from profiling.calibration import Predictions, Recorded
from scheduler.combiner import Combiner
from scheduler.fitting.combiner import fit_combiner


class CombinedRecording(NamedTuple):
    """A combiner, and the rows that it was fitted to and tested on, combined."""

    combiner: Combiner
    recorded: Recorded


def combine_recorded(recorded: Recorded, combiner: Combiner) -> Recorded:
    """Combine all sets as a server does; rows that the combiner was fitted to look too good."""

    def combine(part: Predictions) -> Predictions:
        return part._replace(log_probs=combiner.combine_all(part.log_probs))

    calibration, certification, test = recorded
    return Recorded(
        combine(calibration),
        None if certification is None else combine(certification),
        combine(test),
    )


def fit_and_combine(recorded: Recorded, *, seed: int) -> CombinedRecording:
    """Fit a combiner to the calibration rows and combine all sets.

    Calibration rows are combined by fits that have not seen them, so that policies and frontiers
    can be fitted to them.

    Args:
        recorded: The outputs of the heads.
        seed: Seed of the folds.
    """
    combiner, unseen = fit_combiner(*recorded.calibration, seed=seed)
    calibration = recorded.calibration._replace(log_probs=unseen)
    as_served = combine_recorded(recorded, combiner)
    return CombinedRecording(combiner, as_served._replace(calibration=calibration))
