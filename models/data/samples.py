"""The samples of a dataset: the class of each, and which of them train, calibrate and test."""

import logging
from collections.abc import Hashable, Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.data.images import EncodedImages

log = logging.getLogger(__name__)

CALIBRATION_ROWS = 5000  # held out unless the dataset is small
CALIBRATION_SHARE = 5  # of a small one: one row in five
TEST_SHARE = 10  # of a dataset without a test set: one row in ten
SHOWN_NAMES = 5


class Samples(NamedTuple):
    """What a reader of datasets gives, in the order of its files.

    Attributes:
        classes: The names of the C classes.
        inputs: N encoded images or texts.
        labels: (N,), in 0..C-1.
        is_test: (N,), or None where the dataset leaves the choice to us.
    """

    classes: tuple[str, ...]
    inputs: EncodedImages | list[str]
    labels: NDArray[np.int64]
    is_test: NDArray[np.bool_] | None

    def keys(self) -> Sequence[Hashable]:
        """One key a row, (N,), equal where two inputs are the same."""
        if isinstance(self.inputs, list):
            return [text.strip() for text in self.inputs]
        return self.inputs.keys()


class SplitRows(NamedTuple):
    """Row numbers, ascending, of three sets that share no input."""

    train: NDArray[np.int64]
    calibration: NDArray[np.int64]
    test: NDArray[np.int64]


def index_labels(
    names: Sequence[str], is_test: NDArray[np.bool_] | None, source: str
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Number the classes: by value if all names are integers, else by name.

    Args:
        names: The class of every row, (N,).
        is_test: (N,), or None.
        source: Where the rows come from, for the sentences.

    Returns:
        The C classes and the labels (N,).

    Raises:
        ValueError: If there are fewer than two classes, or the test rows have others than the
            training rows.
    """
    if is_test is not None:
        in_train, in_test = (set(compress(names, part)) for part in (~is_test, is_test))
        for part, here, there in (("test", in_test, in_train), ("training", in_train, in_test)):
            if lacking := sorted(there - here):
                raise ValueError(
                    f"the {part} rows of {source} lack the class {_shown(lacking)}; every class "
                    f"must stand in both training and test"
                )
    classes = _ordered(set(names))
    if len(classes) < 2:
        raise ValueError(
            f"{source} has {len(classes)} class ({_shown(classes)}); a classifier needs two or more"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, np.array([numbers[name] for name in names], np.int64)


def split_rows(samples: Samples, calibration_size: int | None, seed: int) -> SplitRows:
    """Drop repeated inputs and pick the three sets.

    A training row is dropped where its input also stands in the test set or in an earlier training
    row; a test set that came with the data stays as it is.

    Args:
        samples: The dataset.
        calibration_size: Training rows to hold out; None: 5000, or a fifth where that is less.
        seed: Of both hold-outs.

    Raises:
        ValueError: If too few rows are left for the calibration set, or for a test set of ours.
    """
    kept, dropped = _without_repeats(samples)
    is_test = _hold_out(samples, kept, seed) if samples.is_test is None else samples.is_test[kept]
    train, test = kept[~is_test], kept[is_test]
    if len(train) < 2:
        raise ValueError(
            f"{len(train)} training rows are left after {dropped} that repeat others or stand in "
            f"the test set were dropped; at least 2 are needed"
        )
    size = calibration_size
    if size is None:
        size = max(min(CALIBRATION_ROWS, len(train) // CALIBRATION_SHARE), 1)
    if not 0 < size < len(train):
        raise ValueError(
            f"calibration size {size} must lie between 1 and {len(train) - 1}, the training rows "
            f"less one"
        )
    order = np.random.default_rng(seed).permutation(len(train))
    return SplitRows(train[np.sort(order[size:])], train[np.sort(order[:size])], test)


def _without_repeats(samples: Samples) -> tuple[NDArray[np.int64], int]:
    """The rows to keep, ascending, and how many were dropped."""
    keys = samples.keys()
    is_test = [False] * len(keys) if samples.is_test is None else samples.is_test.tolist()
    in_test = {key for key, test in zip(keys, is_test, strict=True) if test}
    in_train: set[Hashable] = set()
    kept, shared = [], 0
    for row, (key, test) in enumerate(zip(keys, is_test, strict=True)):
        if test:
            kept.append(row)
        elif key in in_test:
            shared += 1
        elif key not in in_train:
            kept.append(row)
            in_train.add(key)
    dropped = len(keys) - len(kept)
    if dropped:
        log.info(
            "dropped %d training rows that also stand in the test set and %d that repeat an "
            "earlier one",
            shared,
            dropped - shared,
        )
    return np.array(kept, np.int64), dropped


def _hold_out(samples: Samples, kept: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Marks a seeded tenth of every class, at least one row of it, among the rows kept."""
    # A stream of its own: the same seed later permutes the training rows.
    rng = np.random.default_rng([seed, TEST_SHARE])
    labels = samples.labels[kept]
    is_test = np.zeros(len(kept), bool)
    for label, name in enumerate(samples.classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise ValueError(
                f"class {name!r} has {len(members)} row; it needs one to train and one to test"
            )
        is_test[members[: max(round(len(members) / TEST_SHARE), 1)]] = True
    log.info("held out %d of %d rows as the test set", is_test.sum(), len(kept))
    return is_test


def _ordered(names: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(map(repr, names[:SHOWN_NAMES])) + more
