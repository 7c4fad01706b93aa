"""Samples as read from files, and how they are labelled and split."""

import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.data.dataset import CalibrationSource
from models.data.images import EncodedImages

log = logging.getLogger(__name__)

CALIBRATION_ROWS = 5000  # held out unless the dataset is small
CALIBRATION_SHARE = 5  # held out of a small dataset: one row in five
CERTIFICATION_STREAM = 2  # of random numbers, with the seed; TEST_SHARE names another
TEST_SHARE = 10  # held out of a dataset without a test set: one row in ten
MAX_LISTED_NAMES = 5


class Samples(NamedTuple):
    """Samples of a dataset, in the order of its files.

    Attributes:
        classes: Names of the C classes.
        inputs: N encoded images or texts.
        labels: Class numbers, 0 to C-1, (N,).
        is_test: Whether each sample is in the test set, (N,); None if the dataset has no test set.
    """

    classes: tuple[str, ...]
    inputs: EncodedImages | list[str]
    labels: NDArray[np.int64]
    is_test: NDArray[np.bool_] | None

    def keys(self) -> Sequence[Hashable]:
        """Compute one key per row, (N,); two keys are equal if the inputs are the same."""
        if isinstance(self.inputs, list):
            return [text.strip() for text in self.inputs]
        return self.inputs.keys()


class SplitRows(NamedTuple):
    """Row numbers, ascending, of splits that share no input."""

    train: NDArray[np.int64]
    calibration: NDArray[np.int64]
    certification: NDArray[np.int64]
    test: NDArray[np.int64]


def index_labels(
    names: Sequence[str], is_test: NDArray[np.bool_] | None, source: str
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Number the classes: by value if all names are integers, else by name.

    Args:
        names: Class of every row, (N,).
        is_test: Whether each row is in the test set, (N,), or None.
        source: Where the rows come from, for messages.

    Returns:
        The C classes and the labels (N,).

    Raises:
        ValueError: If there are fewer than two classes, or training and test rows differ in their
            classes.
    """
    if is_test is not None:
        in_train, in_test = (set(compress(names, part)) for part in (~is_test, is_test))
        for part, here, there in (("test", in_test, in_train), ("training", in_train, in_test)):
            if missing := sorted(there - here):
                raise ValueError(
                    f"the {part} rows of {source} lack the class {_format_names(missing)}; add "
                    f"rows of every class to both training and test"
                )
    classes = _sort_classes(set(names))
    if len(classes) < 2:
        raise ValueError(
            f"{source} has {len(classes)} class ({_format_names(classes)}); a classifier needs two "
            f"or more"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, np.array([numbers[name] for name in names], np.int64)


def split_rows(
    samples: Samples,
    calibration_size: int | None,
    seed: int,
    *,
    calibration_from: CalibrationSource = "train",
    certification_size: int = 0,
    stratified: bool = True,
) -> SplitRows:
    """Drop duplicate inputs and split the rows.

    A training row is dropped if its input is also in the test set or in an earlier training row. No
    test row is dropped. Rows that are held out of the test set are drawn from those whose input
    occurs there once. The certification rows depend on the seed and their number only.

    Args:
        samples: The dataset.
        calibration_size: Number of rows to hold out for calibration; None: 5000, or a fifth if
            that is less.
        seed: Seed of all hold-outs.
        calibration_from: Whether calibration rows are training or test rows.
        certification_size: Number of test rows to hold out for certification.
        stratified: Hold out rows of every class in proportion, at least one where the class has
            two and the size allows it.

    Raises:
        ValueError: If too few rows are left to train on, to test on, or to hold out a test set.
    """
    keys, labels = samples.keys(), samples.labels if stratified else None
    kept, dropped = _drop_duplicates(samples, keys)
    is_test = _hold_out(samples, kept, seed) if samples.is_test is None else samples.is_test[kept]
    train, test = kept[~is_test], kept[is_test]
    if len(train) < 2:
        raise ValueError(
            f"{len(train)} training rows are left after dropping {dropped} duplicates of other "
            f"training or test rows; add training rows, at least 2 are needed"
        )
    if calibration_from == "test":
        size = _calibration_size(calibration_size, len(test) - certification_size)
        sizes = (certification_size, size)
        parts, test = _split_test(keys, labels, test, sizes, seed)
        certification, calibration = parts
        return SplitRows(train, calibration, certification, test)
    (certification,), test = _split_test(keys, labels, test, (certification_size,), seed)
    size = _calibration_size(calibration_size, len(train))
    if not 0 < size < len(train):
        raise ValueError(
            f"calibration size {size} must lie between 1 and {len(train) - 1}, the number of "
            f"training rows less one"
        )
    order = train[np.random.default_rng(seed).permutation(len(train))]
    if labels is not None:
        order = _class_by_class(order, labels)
    calibration, train = np.sort(order[:size]), np.sort(order[size:])
    return SplitRows(train, calibration, certification, test)


def _calibration_size(size: int | None, num_rows: int) -> int:
    if size is not None:
        return size
    return max(min(CALIBRATION_ROWS, num_rows // CALIBRATION_SHARE), 1)


def _class_by_class(rows: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Reorder rows so that every head of the list holds all classes in proportion.

    The first row of every class with two or more comes first of all, and its last row last, so that
    as far as possible no class is missing in either part.

    Args:
        rows: Row numbers in random order, which stays that of each class, (n,).
        labels: Classes of all rows, (N,).
    """
    by_class = np.argsort(labels[rows], kind="stable")
    _, starts, counts = np.unique(labels[rows][by_class], return_index=True, return_counts=True)
    ranks = np.arange(len(rows)) - np.repeat(starts, counts)
    sizes = np.repeat(counts, counts)
    places = np.empty(len(rows))  # where in its class each row stands, from 0 to 1
    places[by_class] = np.where(
        ranks == sizes - 1, 1.0, np.where(ranks == 0, 0.0, (ranks + 0.5) / sizes)
    )
    return rows[np.argsort(places, kind="stable")]


def _split_test(
    keys: Sequence[Hashable],
    labels: NDArray[np.int64] | None,
    test: NDArray[np.int64],
    sizes: Sequence[int],
    seed: int,
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Draw parts of given sizes from the test rows; return them and the rows that are left.

    With labels, each part holds the classes in proportion.

    Raises:
        ValueError: If no test row would be left.
    """
    wanted = sum(sizes)
    if not wanted:
        return [test[:0] for _ in sizes], test
    counts = Counter(keys[row] for row in test)
    once = np.array([row for row in test if counts[keys[row]] == 1], np.int64)
    most = min(len(once), len(test) - 1)
    if wanted > most:
        raise ValueError(
            f"{' + '.join(map(str, sizes))} rows cannot be held out of {len(test)} test rows, of "
            f"which {len(once)} occur once; hold out at most {most}"
        )
    order = once[np.random.default_rng([seed, CERTIFICATION_STREAM]).permutation(len(once))]
    parts = []
    for size in sizes:
        if labels is not None:
            order = _class_by_class(order, labels)
        part, order = order[:size], order[size:]
        parts.append(np.sort(part))
    return parts, np.setdiff1d(test, np.concatenate(parts))


def _drop_duplicates(samples: Samples, keys: Sequence[Hashable]) -> tuple[NDArray[np.int64], int]:
    """Return the rows to keep, ascending, and the number of dropped rows."""
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
            "dropped %d training rows that are also in the test set and %d that repeat an earlier "
            "training row",
            shared,
            dropped - shared,
        )
    return np.array(kept, np.int64), dropped


def _hold_out(samples: Samples, kept: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Mark a random tenth of every class, at least one row, as test rows."""
    # A separate random stream, because the same seed later permutes the training rows.
    rng = np.random.default_rng([seed, TEST_SHARE])
    labels = samples.labels[kept]
    is_test = np.zeros(len(kept), bool)
    for label, name in enumerate(samples.classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise ValueError(
                f"class {name!r} has too few rows ({len(members)}); it needs at least one to train "
                f"and one to test"
            )
        is_test[members[: max(round(len(members) / TEST_SHARE), 1)]] = True
    log.info("held out %d of %d rows as the test set", is_test.sum(), len(kept))
    return is_test


def _sort_classes(names: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def _format_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED_NAMES} more" if len(names) > MAX_LISTED_NAMES else ""
    return ", ".join(map(repr, names[:MAX_LISTED_NAMES])) + more
