"""Counts the rows of each class in the splits of a dataset, for people."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from models.data.dataset import Dataset

MAX_LISTED_CLASSES = 20
SPLITS = ("train", "calibration", "certification", "test")


def class_counts(data: Dataset) -> dict[str, NDArray[np.int64]]:
    """Count the rows of each class in each split, (C,); a row counts for each class that it has."""
    splits = {name: split for name in SPLITS if (split := getattr(data, name)) is not None}
    return {
        name: split.labels.sum(0)
        if split.labels.ndim == 2
        else np.bincount(split.labels, minlength=len(data.classes))
        for name, split in splits.items()
    }


def count_classes(data: Dataset) -> Iterator[str]:
    """Lines of a table: the rows of each split, in all and by class.

    Of more than 20 classes, only the rarest and the most frequent one of each split.
    """
    sizes = {name: len(getattr(data, name).labels) for name in SPLITS if getattr(data, name)}
    yield "rows: " + ", ".join(f"{name} {size}" for name, size in sizes.items())
    counts = class_counts(data)
    if len(data.classes) > MAX_LISTED_CLASSES:
        for name, of_class in counts.items():
            low, high = int(of_class.argmin()), int(of_class.argmax())
            yield (
                f"{name}: {of_class[low]} ({data.classes[low]}) to {of_class[high]} "
                f"({data.classes[high]}) rows of each of {len(data.classes)} classes"
            )
        return
    width = max(len("class"), *map(len, data.classes))
    yield f"{'class':{width}}" + "".join(f"  {name:>13}" for name in counts)
    for place, label in enumerate(data.classes):
        row = "".join(f"  {of_class[place]:13d}" for of_class in counts.values())
        yield f"{label:{width}}{row}"
