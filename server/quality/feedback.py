"""Recent predictions, and the true labels that feedback gives for some of them."""

from array import array
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

REMEMBERED = 100_000
NOBODY = 0  # the owner of answers to requests without a key
WINDOW = 10_000
CLASS_BITS, EXIT_BITS = 32, 8


class LoggedPrediction(NamedTuple):
    """A prediction that feedback may refer to.

    Attributes:
        key: Hash of the request's id and owner.
        model: What the model was recorded as.
        exit: Exit of the prediction.
        class_id: Predicted class.
    """

    key: int
    model: str
    exit: int
    class_id: int


class PredictionLog:
    """Ring buffer of the last predictions by request id; for the event loop's thread.

    An id is stored as a hash of 64 bits, salted by the process: a collision among a hundred
    thousand ids happens once in four billion such sets. The item i of a list has the id `ID/i`.
    Clients may choose ids, and the first answer under one keeps it until it is dropped: a label
    that another request could claim would be worth nothing.

    Answers come thousands of times a second, labels now and then: there is no index to keep, and
    `find` looks through all the hashes, in some 50 us.

    Args:
        capacity: Number of predictions kept; the oldest are dropped.
    """

    def __init__(self, capacity: int = REMEMBERED) -> None:
        self.capacity = capacity
        self._models: dict[str, int] = {}  # number of each
        self._keys = array("q", bytes(8 * capacity))
        self._answers = array("q", bytes(8 * capacity))  # model, exit and class in one number
        self._noted = 0

    def record(self, key: int, model: str, exit: int, class_id: int) -> None:
        """Store a prediction under the hash of its id, which an earlier one may have."""
        place = self._noted % self.capacity
        self._keys[place] = key
        number = self._models.setdefault(model, len(self._models)) << EXIT_BITS | exit
        self._answers[place] = number << CLASS_BITS | class_id
        self._noted += 1

    def find(self, request_id: str, owner: int = NOBODY) -> LoggedPrediction | None:
        """The first prediction of an owner under an id; None if there is none any more."""
        key = key_of(request_id, owner)
        places = np.flatnonzero(np.frombuffer(self._keys, np.int64)[: len(self)] == key)
        if not len(places):
            return None
        place = max(places.tolist(), key=self._age)
        number, class_id = divmod(self._answers[place], 1 << CLASS_BITS)
        model, exit = divmod(number, 1 << EXIT_BITS)
        return LoggedPrediction(key, list(self._models)[model], exit, class_id)

    def repeated(self) -> set[int]:
        """The keys that several predictions have; takes 10 ms."""
        keys, counts = np.unique(
            np.frombuffer(self._keys, np.int64)[: len(self)], return_counts=True
        )
        return set(keys[counts > 1].tolist())

    def __len__(self) -> int:
        return min(self._noted, self.capacity)

    def _age(self, place: int) -> int:
        """Return how many predictions were stored after the one at a place."""
        return (self._noted - 1 - place) % self.capacity


def key_of(request_id: str, owner: int = NOBODY) -> int:
    """The hash under which a request's id is stored; each owner has ids of its own.

    Args:
        request_id: The id.
        owner: 64 bits that nobody else knows.
    """
    return hash(request_id) ^ owner


class AccuracyCount(NamedTuple):
    """Number of labels, and of correct predictions among them."""

    right: int
    labels: int

    @property
    def accuracy(self) -> float | None:
        """Share of correct predictions; None without labels."""
        return self.right / self.labels if self.labels else None


class _Label(NamedTuple):
    class_id: int
    exit: int
    right: bool


class Feedback:
    """The latest true labels for one model's predictions, counted by exit.

    Args:
        num_exits: K.
        window: Number of labels that count; the oldest are dropped.
    """

    def __init__(self, num_exits: int, window: int = WINDOW) -> None:
        self._window = window
        self._given: OrderedDict[int, _Label] = OrderedDict()
        self._labels = [0] * num_exits
        self._right = [0] * num_exits

    def add(self, answered: LoggedPrediction, class_id: int) -> bool:
        """Add the true label of a prediction; it replaces an earlier label of the same prediction.

        Returns:
            Whether the window held no label of the prediction before.
        """
        label = _Label(class_id, answered.exit, class_id == answered.class_id)
        before = self._given.get(answered.key)
        self._given[answered.key] = label
        self._count(label, 1)
        if before is not None:
            self._count(before, -1)
        elif len(self._given) > self._window:
            self._count(self._given.popitem(last=False)[1], -1)
        return before is None

    def label_of(self, key: int) -> int | None:
        """The label given for a prediction; None without one in the window."""
        label = self._given.get(key)
        return None if label is None else label.class_id

    @property
    def tallies(self) -> list[AccuracyCount]:
        """Accuracy of each exit, (K,)."""
        return [
            AccuracyCount(right, labels)
            for right, labels in zip(self._right, self._labels, strict=True)
        ]

    def _count(self, label: _Label, by: int) -> None:
        self._labels[label.exit] += by
        self._right[label.exit] += by * label.right
