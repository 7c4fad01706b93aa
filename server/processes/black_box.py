"""What an engine is executing, readable after its death."""

import mmap
import os
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_THREADS, MOST_ROWS = 257, 1024  # of an engine, and of a batch
MOST_MODELS = 4096  # at a time
ROWS = MOST_THREADS * (1 + MOST_ROWS)
BYTES = (ROWS + MOST_MODELS) * 8
FRONT_BIT = 48


def create() -> int:
    """Create the memory of a black box; return its descriptor.

    Raises:
        ValueError: If the limits of this process forbid it.
    """
    descriptor = os.memfd_create("eenet-black-box")
    try:
        os.truncate(descriptor, BYTES)
    except OSError as error:  # it counts as a file, though it is on no disk
        os.close(descriptor)
        raise ValueError(
            f"this process may not write a file of {BYTES} bytes ({error.strerror}), which it "
            f"needs for each engine; raise `ulimit -f`, or give --front-ends 0"
        ) from error
    return descriptor


def marks(front: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the marks of a front-end's requests, by their numbers."""
    return numbers | front << FRONT_BIT


class BlackBox:
    """The requests that each thread of an engine is executing, in memory shared with control.

    A request is known by its front-end and its number there. What a thread wrote stays until it
    writes again, so a request that has been answered may still be listed. It also counts the
    samples that were drawn for the audit of each model: those that the engine never told the end of
    died with it.

    Args:
        descriptor: From `create`.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, BYTES)
        cells = np.frombuffer(self._memory, np.int64)
        self._rows = cells[:ROWS].reshape(MOST_THREADS, 1 + MOST_ROWS)
        self._drawn = cells[ROWS:]
        self._slots: dict[int, int] = {}
        self._lock = threading.Lock()  # guards the slots

    def write(self, executing: Sequence[int]) -> None:
        """Note the marks of what this thread executes from now on."""
        row, listed = self._rows[self._slot()], executing[:MOST_ROWS]
        row[0] = 0
        row[1 : 1 + len(listed)] = listed
        row[0] = len(listed)

    def read(self, front: int) -> set[int]:
        """Return the numbers of the requests of a front-end that were being executed."""
        found = [row[1 : 1 + row[0]] for row in self._rows if row[0]]
        listed = np.concatenate([*found, np.empty(0, np.int64)])
        mine = listed[listed >> FRONT_BIT == front] & ((1 << FRONT_BIT) - 1)
        return set(mine.tolist())

    def count_draw(self, model: int) -> None:
        """Count a sample of a model, by its number, that was drawn; one thread at a time."""
        self._drawn[model % MOST_MODELS] += 1

    def take_drawn(self, model: int) -> int:
        """Return how many samples of a model the engine drew, and count from 0 again."""
        place = model % MOST_MODELS
        drawn, self._drawn[place] = int(self._drawn[place]), 0
        return drawn

    def clear(self) -> None:
        """Forget everything, before another engine writes here."""
        self._rows[:, 0] = 0
        self._drawn[:] = 0

    def _slot(self) -> int:
        thread = threading.get_ident()
        slot = self._slots.get(thread)
        if slot is None:
            with self._lock:
                slot = self._slots[thread] = min(len(self._slots), MOST_THREADS - 1)
        return slot
