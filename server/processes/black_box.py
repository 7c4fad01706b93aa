"""What an engine is executing, readable after its death."""

import mmap
import os
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_THREADS, MOST_ROWS = 257, 1024  # of an engine, and of a batch
BYTES = MOST_THREADS * (1 + MOST_ROWS) * 8
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
    writes again, so a request that has been answered may still be listed.

    Args:
        descriptor: From `create`.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, BYTES)
        self._rows = np.frombuffer(self._memory, np.int64).reshape(MOST_THREADS, 1 + MOST_ROWS)
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

    def clear(self) -> None:
        """Forget everything, before another engine writes here."""
        self._rows[:, 0] = 0

    def _slot(self) -> int:
        thread = threading.get_ident()
        slot = self._slots.get(thread)
        if slot is None:
            with self._lock:
                slot = self._slots[thread] = min(len(self._slots), MOST_THREADS - 1)
        return slot
