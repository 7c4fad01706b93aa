"""Compare the classes of a dataset with those that a classifier was fine-tuned on."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from models.data.class_names import comparable
from models.data.dataset import Dataset

MAX_LISTED = 5
PLACEHOLDER = re.compile(r"LABEL_\d+")  # what transformers writes where nobody named the classes


class ClassMatch(NamedTuple):
    """How the classes of a dataset relate to those of a classifier.

    Attributes:
        names: Names of the dataset's classes, in its order, (C,).
        order: The classifier's output for each class, (C,); None if that is unknown.
        sentence: Both for people.
    """

    names: tuple[str, ...]
    order: tuple[int, ...] | None
    sentence: str


def match_classes(classes: Sequence[str], id2label: Mapping[str, str]) -> ClassMatch:
    """Find the output of a classifier for each class: by name without case, or by its number.

    Args:
        classes: Classes of the dataset, (C,).
        id2label: Names of the classifier's outputs by their number, as a `config.json` has them.
    """
    before = [name for _, name in sorted(id2label.items(), key=lambda entry: int(entry[0]))]
    given, own = tuple(classes), [comparable(name) for name in classes]
    are_placeholders = all(map(PLACEHOLDER.fullmatch, before))
    if sorted(given) == sorted(before):
        order = tuple(before.index(name) for name in given)
        return ClassMatch(given, order, f"its classes {_listed(before)} are the dataset's")
    numbers = {str(number) for number in range(len(before))}
    if set(given) == numbers:
        order = tuple(map(int, given))
        if are_placeholders:
            return ClassMatch(given, order, f"its {len(before)} outputs are the labels' numbers")
        names = tuple(before[number] for number in order)
        pairs = [f"{number} {name}" for number, name in zip(given, names, strict=True)]
        return ClassMatch(names, order, f"the labels are its numbers: {_listed(pairs)}")
    theirs = [comparable(name) for name in before]
    if sorted(own) == sorted(theirs) and len(set(own)) == len(own):
        order = tuple(theirs.index(name) for name in own)
        pairs = [f"{name} is its {before[i]}" for name, i in zip(given, order, strict=True)]
        return ClassMatch(given, order, _listed(pairs))
    if len(before) != len(given):
        reason = f"it has {len(before)} classes ({_listed(before)}), the dataset {len(given)}"
    elif are_placeholders:
        reason = (
            f"its classes are called {_listed(before)}, which does not tell their order; give the "
            f"labels as its numbers, or name its classes in id2label"
        )
    else:
        reason = f"its classes are {_listed(before)}, not {_listed(given)}"
    return ClassMatch(given, None, reason)


def rename(data: Dataset, names: tuple[str, ...]) -> Dataset:
    """Return the dataset with other names of its classes."""
    return data if names == data.classes else data.map_labels(names, lambda labels: labels)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
