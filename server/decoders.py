"""Where payloads are decoded: three lanes, so that what takes long holds up nothing quick."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

from models.images import FEW_PIXELS
from server.decode_helper import DecodeHelper
from server.decode_pool import DecodePool
from server.shared_turn import SharedTurn

QUICK_MS = 10.0  # by an image's header; others wait for threads of their own


class PixelRoom:
    """A bound on the pixels of large images that are being decoded; first come, first served.

    An image of up to four million pixels passes. One that is larger than the room has it alone,
    and is the only such image of all processes.

    Args:
        max_pixels: The bound.
        beyond: The turn of images that are larger than the room of their process; None: there is no
            other process.
    """

    def __init__(self, max_pixels: int, beyond: SharedTurn | None = None) -> None:
        self._max_pixels, self._beyond = max_pixels, beyond
        self._held = 0
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait for room; blocks."""
        if pixels <= FEW_PIXELS:
            yield
            return
        counted = min(pixels, self._max_pixels)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._held + counted <= self._max_pixels)
            self._held += counted
        try:
            beyond = self._beyond if pixels > self._max_pixels else None
            with nullcontext() if beyond is None else beyond.hold():
                yield
        finally:
            with self._changed:
                self._held -= counted
                self._changed.notify()


class Decoders(NamedTuple):
    """The lanes of a front.

    Attributes:
        quick: Threads for payloads that take up to 10 ms, and for parsing.
        large: Threads for images that take up to 100 ms.
        helper: A process for slower ones.
        room: Bounds the pixels of the latter two.
    """

    quick: DecodePool
    large: DecodePool
    helper: DecodeHelper
    room: PixelRoom

    def shutdown(self) -> None:
        """End the process and the threads; blocks."""
        self.helper.shutdown()
        self.large.shutdown()
        self.quick.shutdown()


def make_decoders(
    workers: int, timeout_s: float, max_pixels: int, beyond: SharedTurn | None = None
) -> Decoders:
    """Start the threads; the process starts with its first image.

    Args:
        workers: Threads of each lane that has threads.
        timeout_s: Longest time that the process may take for an image.
        max_pixels: Most pixels of large images that are being decoded.
        beyond: As in `PixelRoom`.
    """
    pools = DecodePool(workers), DecodePool(workers)
    return Decoders(*pools, DecodeHelper(timeout_s), PixelRoom(max_pixels, beyond))
