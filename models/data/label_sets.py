"""Rows that have any number of labels: read them from one column or from one column per class."""

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.class_names import sort_classes
from models.data.objects import plain_label

TRUE = frozenset({"1", "true", "yes", "y", "t", "x"})
FALSE = frozenset({"0", "false", "no", "n", "f", ""})

LabelSet = dict[str, bool]
"""Classes of a row, by name; those of one column per class are all there, set or not."""


def split_labels(
    place: str, values: Mapping[str, Any], columns: Sequence[str], separator: str | None
) -> LabelSet:
    """Return the labels of a row.

    Args:
        place: Where the row is, for messages.
        values: Its values by column.
        columns: One column that lists the labels, or one column per class that holds 0 or 1.
        separator: What separates labels in one column of texts.

    Raises:
        ValueError: If a column of a class holds anything but 0 and 1.
    """
    if len(columns) > 1:
        return {name: _is_set(place, name, values[name]) for name in columns}
    value = values[columns[0]]
    if isinstance(value, str) and separator is not None:
        value = value.split(separator)
    if value is None or value != value:  # null or NaN: no label
        value = []
    names = [plain_label(each) for each in (value if isinstance(value, list | tuple) else [value])]
    if None in names:
        raise ValueError(f"{place} has the labels {value!r}; each must be a string or an integer")
    return {name: True for name in names if name}


def _is_set(place: str, column: str, value: Any) -> bool:
    plain = (plain_label(value) or "").casefold()
    if plain.endswith(".0"):
        plain = plain[:-2]
    if plain not in TRUE | FALSE:
        raise ValueError(
            f"{place} has {value!r} in the column {column!r}; a column per class holds 0 or 1"
        )
    return plain in TRUE


def index_label_sets(
    sets: Sequence[LabelSet], is_test: NDArray[np.bool_] | None, source: str
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Number the classes and mark those of each row.

    Args:
        sets: Classes of every row, (N,).
        is_test: Whether each row is in the test set, (N,), or None.
        source: Where the rows come from, for messages.

    Returns:
        The C classes, and 1 where a row has a class, else 0, (N, C).

    Raises:
        ValueError: If there are fewer than two classes, or one has no row of training or of test.
    """
    classes = sort_classes({name for each in sets for name in each})
    if len(classes) < 2:
        raise ValueError(
            f"{source} has {len(classes)} labels; a classifier of several labels needs two or more"
        )
    places = {name: place for place, name in enumerate(classes)}
    marks = np.zeros((len(sets), len(classes)), np.int64)
    for row, each in enumerate(sets):
        marks[row, [places[name] for name, is_set in each.items() if is_set]] = 1
    parts = {"": slice(None)} if is_test is None else {"training ": ~is_test, "test ": is_test}
    for part, rows in parts.items():
        if absent := list(compress(classes, marks[rows].sum(0) == 0)):
            raise ValueError(
                f"no {part}row of {source} has the label {', '.join(map(repr, absent[:5]))}; add "
                f"rows that have it, or remove the label"
            )
    return classes, marks
