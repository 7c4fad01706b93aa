"""Samples as read from files, and how they are labelled and split."""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.data.class_names import sort_classes, unify_numbers
from models.data.dataset import CalibrationSource
from models.data.images import EncodedImages
from models.data.split_names import is_split_name
from models.preprocess import Text

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
        labels: Class numbers, 0 to C-1, (N,). If a row may have several labels: 1 for each class
            that it has, else 0, (N, C).
        is_test: Whether each sample is in the test set, (N,); None if the dataset has no test set.
        notes: What was passed over, or read as something else, one sentence each.
    """

    classes: tuple[str, ...]
    inputs: EncodedImages | list[Text]
    labels: NDArray[np.int64]
    is_test: NDArray[np.bool_] | None
    notes: tuple[str, ...] = ()

    def keys(self) -> Sequence[Hashable]:
        """Compute one key per row, (N,); two keys are equal if the inputs are the same."""
        if isinstance(self.inputs, list):
            return [_text_key(text) for text in self.inputs]
        return self.inputs.keys()

    def strata(self) -> NDArray[np.int64]:
        """The class of each row, (N,); of several its rarest, and C where a row has none."""
        if self.labels.ndim == 1:
            return self.labels
        counts = self.labels.sum(0)
        rarity = np.where(self.labels > 0, counts, len(self.labels) + 1)
        return np.where(self.labels.any(1), rarity.argmin(1), len(self.classes))


class IndexedLabels(NamedTuple):
    """The names of C classes, the labels (N,), and what was changed, one sentence each."""

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    notes: tuple[str, ...] = ()


class _Duplicates(NamedTuple):
    """The rows that are kept, ascending, and how many were dropped for which reason."""

    kept: NDArray[np.int64]
    in_test: int
    repeats: int
    contradicting: int

    @property
    def dropped(self) -> int:
        """Number of dropped rows."""
        return self.in_test + self.repeats


class SplitRows(NamedTuple):
    """Row numbers, ascending, of splits that share no input."""

    train: NDArray[np.int64]
    calibration: NDArray[np.int64]
    certification: NDArray[np.int64]
    test: NDArray[np.int64]


def index_labels(
    names: Sequence[str], is_test: NDArray[np.bool_] | None, source: str
) -> IndexedLabels:
    """Number the classes: by value if all names are integers, else by name.

    A number that is written as 1 in some rows and as 1.0 in others is one class.

    Args:
        names: Class of every row, (N,).
        is_test: Whether each row is in the test set, (N,), or None.
        source: Where the rows come from, for messages.

    Raises:
        ValueError: If there are fewer than two classes, all of them have names of splits, or
            training and test rows differ in their classes.
    """
    unified = unify_numbers(Counter(names))
    notes: tuple[str, ...] = ()
    if unified:
        pairs = ", ".join(f"{name!r} as {one!r}" for name, one in sorted(unified.items()))
        notes = (f"labels in two number formats are one class: {pairs}",)
        names = [unified.get(name, name) for name in names]
    if is_test is not None:
        train, test = (Counter(compress(names, part)) for part in (~is_test, is_test))
        _check_same_classes(train, test, source)
    classes = sort_classes(set(names))
    if len(classes) < 2:
        raise ValueError(
            f"{source} has {len(classes)} class ({_format_names(classes)}); a classifier needs two "
            f"or more"
        )
    if all(map(is_split_name, classes)):
        raise ValueError(
            f"the classes of {source} are {_format_names(classes)}, which are names of splits; "
            f"images need one folder per class inside each split, and tables their labels' column "
            f"as --label-column"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return IndexedLabels(classes, np.array([numbers[name] for name in names], np.int64), notes)


def _check_same_classes(train: Counter[str], test: Counter[str], source: str) -> None:
    """Refuse classes that only the training rows or only the test rows have.

    Raises:
        ValueError: If there are any; the message names them.
    """
    foreign, missing = sorted(test.keys() - train.keys()), sorted(train.keys() - test.keys())
    if foreign:
        rows = sum(test[name] for name in foreign)
        hint = "; add rows of every class to both training and test"
        if foreign == ["-1"]:
            hint = (
                "; -1 marks labels that are kept secret: replace the test split by one that has "
                "labels, such as validation"
            )
        raise ValueError(
            f"the training rows of {source} lack the class {_format_names(foreign)}, which {rows} "
            f"of {test.total()} test rows have{hint}"
        )
    if missing:
        raise ValueError(
            f"the test rows of {source} lack the class {_format_names(missing)}; add rows of every "
            f"class to both training and test"
        )


def split_rows(
    samples: Samples,
    calibration_size: int | None,
    seed: int,
    *,
    calibration_from: CalibrationSource = "train",
    certification_size: int = 0,
    stratified: bool = True,
    note: Callable[[str], None] = log.info,
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
        note: Called with each sentence on what was dropped or held out.

    Raises:
        ValueError: If too few rows are left to train on, to test on, or to hold out a test set.
    """
    keys, labels = samples.keys(), samples.strata() if stratified else None
    duplicates = _drop_duplicates(samples, keys, note)
    kept = duplicates.kept
    if samples.is_test is None:
        is_test = _hold_out(samples, duplicates, seed, note)
    else:
        is_test = samples.is_test[kept]
    train, test = kept[~is_test], kept[is_test]
    if len(train) < 2:
        raise ValueError(
            f"{len(train)} training rows are left after dropping {duplicates.dropped} duplicates "
            f"of other training or test rows{_contradictions(duplicates)}; add training rows, at "
            f"least 2 are needed"
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


def _drop_duplicates(
    samples: Samples, keys: Sequence[Hashable], note: Callable[[str], None]
) -> _Duplicates:
    """Keep the first row of each training input that is not in the test set, and all test rows."""
    labels = samples.labels.tolist()
    is_test = [False] * len(keys) if samples.is_test is None else samples.is_test.tolist()
    label_in_test = {
        key: label for key, test, label in zip(keys, is_test, labels, strict=True) if test
    }
    label_in_train: dict[Hashable, object] = {}
    kept, in_test, repeats, contradicting = [], 0, 0, 0
    for row, (key, test, label) in enumerate(zip(keys, is_test, labels, strict=True)):
        if test:
            kept.append(row)
        elif key in label_in_test:
            in_test += 1
            contradicting += label_in_test[key] != label
        elif key in label_in_train:
            repeats += 1
            contradicting += label_in_train[key] != label
        else:
            kept.append(row)
            label_in_train[key] = label
    duplicates = _Duplicates(np.array(kept, np.int64), in_test, repeats, contradicting)
    if duplicates.dropped:
        note(
            f"dropped {in_test} training rows that are also in the test set and {repeats} that "
            f"repeat an earlier training row{_contradictions(duplicates)}"
        )
    return duplicates


def _contradictions(duplicates: _Duplicates) -> str:
    if not duplicates.contradicting:
        return ""
    return (
        f"; {duplicates.contradicting} of {duplicates.dropped} dropped repeats contradict the row "
        f"that stays: the same input with another label"
    )


def _hold_out(
    samples: Samples, duplicates: _Duplicates, seed: int, note: Callable[[str], None]
) -> NDArray[np.bool_]:
    """Mark a random tenth of every class, at least one row, as test rows."""
    # A separate random stream, because the same seed later permutes the training rows.
    rng = np.random.default_rng([seed, TEST_SHARE])
    kept = duplicates.kept
    labels = samples.strata()[kept]
    is_test = np.zeros(len(kept), bool)
    is_single = samples.labels.ndim == 1
    for label in range(len(samples.classes) + (not is_single)):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2 and is_single:
            dropped = _contradictions(duplicates)
            raise ValueError(
                f"class {samples.classes[label]!r} has too few rows ({len(members)}); it needs at "
                f"least one to train and one to test{dropped}"
            )
        if len(members) >= 2:
            is_test[members[: max(round(len(members) / TEST_SHARE), 1)]] = True
    note(f"held out {is_test.sum()} of {len(kept)} rows as the test set")
    return is_test


def _text_key(text: Text) -> Hashable:
    return text.strip() if isinstance(text, str) else tuple(part.strip() for part in text)


def _format_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED_NAMES} more" if len(names) > MAX_LISTED_NAMES else ""
    return ", ".join(map(repr, names[:MAX_LISTED_NAMES])) + more
