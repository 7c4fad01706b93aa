"""Sum up a dataset for people before anything is trained on it."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from models.data.class_names import name_warnings
from models.data.counts import class_counts, count_classes
from models.data.dataset import Dataset

MANY_TIMES = 10  # as many rows of the most frequent class as of the rarest cause a warning
FEW_ROWS = 10  # of a class in training, below which little can be learned of it


def summarise(data: Dataset, source: str, notes: Sequence[str]) -> str:
    """Write the summary: rows and classes of each split, what was left out, and warnings.

    Args:
        data: The dataset.
        source: Its name.
        notes: What was passed over, dropped or held out, one sentence each.
    """
    many = ", any number of which a row may have" if data.train.labels.ndim == 2 else ""
    lines = [f"{source}: {data.task}, {len(data.classes)} classes{many}", *count_classes(data)]
    return "\n".join([*lines, *notes, *(f"warning: {sentence}" for sentence in warnings_of(data))])


def warnings_of(data: Dataset) -> Iterator[str]:
    """Yield a sentence for all that may be wrong with the classes of a dataset."""
    by_split = class_counts(data)
    total = np.sum(list(by_split.values()), axis=0)
    yield from name_warnings(dict(zip(data.classes, total.tolist(), strict=True)))
    yield from _imbalance(data.classes, by_split["train"])
    for split, counts in by_split.items():
        if absent := [repr(data.classes[i]) for i in np.flatnonzero(counts == 0)]:
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            yield (
                f"no {split} row has the class {', '.join(absent[:5])}{more}; add rows, or hold "
                f"out more"
            )


def _imbalance(classes: Sequence[str], train: NDArray[np.int64]) -> Iterator[str]:
    rarest, most = int(train.argmin()), int(train.argmax())
    if train[most] >= MANY_TIMES * max(int(train[rarest]), 1):
        few = "; little can be learned from so few" if train[rarest] < FEW_ROWS else ""
        yield (
            f"imbalance: {classes[most]!r} has {train[most]} training rows, {classes[rarest]!r} "
            f"{train[rarest]}{few}"
        )
