"""A turn that one process of the server has at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager


def create() -> int:
    """Create a turn; return its descriptor, which each process gets a copy of."""
    return os.memfd_create("eenet-turn")  # stays empty, so no limit on files forbids it


class SharedTurn:
    """Lets one process in; the others wait, about in the order they came.

    It is a record lock, which the kernel takes from a process that dies. Threads of one process do
    not keep each other out. So one of them at a time may hold it.

    Args:
        descriptor: From `create`, a copy of this process's own. No other copy may be closed here
            meanwhile: that would end the turn.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait for the turn; blocks."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
