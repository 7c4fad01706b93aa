"""A value that changes at set times, written on the command line as 0:50,20:200."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class Segment(NamedTuple, Generic[T]):
    """A value with the start and end of its time."""

    begin_s: float
    end_s: float
    value: T


class Schedule(NamedTuple, Generic[T]):
    """Values and the time at which each begins, rising; before the first there is none."""

    begins_s: tuple[float, ...]
    values: tuple[T, ...]

    def at(self, seconds: float) -> int:
        """Index of the value in force at a time; that of the first even before it begins."""
        return max(bisect_right(self.begins_s, seconds) - 1, 0)

    def spans(self, end_s: float) -> Iterator[Segment[T]]:
        """Each value with its start and end; the last one ends at `end_s`."""
        ends_s = (*self.begins_s[1:], end_s)
        return map(Segment, self.begins_s, ends_s, self.values)

    def times(self) -> NDArray[np.float64]:
        """The time at which each begins, (M,)."""
        return np.array(self.begins_s)


def read_schedule(text: str, read: Callable[[str], T]) -> Schedule[T]:
    """Parse SECONDS:VALUE,SECONDS:VALUE; a value alone is in force from 0 s on.

    Args:
        text: The text of a flag.
        read: Parses a value, or raises ValueError with a message.

    Raises:
        ValueError: If the times do not rise from 0 s on, or a value cannot be parsed.
    """
    if ":" not in text:
        return Schedule((0.0,), (read(text.strip()),))
    begins_s, values = [], []
    for part in text.split(","):
        seconds, colon, value = part.partition(":")
        begins_s.append(_seconds(seconds.strip()) if colon else math.nan)
        if not begins_s[-1] >= 0 or begins_s[-1:] <= begins_s[-2:-1]:  # NaN fails too
            raise ValueError(
                f"{part.strip()!r} in {text!r} is not a SECONDS:VALUE later than the one before"
            )
        values.append(read(value.strip()))
    return Schedule(tuple(begins_s), tuple(values))


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan
