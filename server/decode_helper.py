"""Decodes slow images in a process of its own, which is killed when one takes too long."""

import logging
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, ParamSpec

from models.images import DecodedImage, ImageDecoder, InvalidInput
from server.decode_pool import DecodePool
from server.decode_process import READY, PeerGone, receive, receive_decoded, send_image
from server.errors import DecodeQueueFull

log = logging.getLogger(__name__)

MAX_WAITING = 16
START_S = 30.0
ROOT = Path(__file__).resolve().parent.parent  # the folder of the packages `server` and `models`

P = ParamSpec("P")


class _Helper(NamedTuple):
    """The process and the connection to it."""

    process: subprocess.Popen[bytes]
    connection: socket.socket

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


class DecodeHelper:
    """One thread that waits for one process.

    The process starts with the first image and serves all later ones. Images wait in a queue of
    their own, so that slow ones hold up no others.

    Args:
        timeout_s: Longest time to decode one image.
        clock: Seconds, monotonic.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s, self._clock = timeout_s, clock
        self._lane = DecodePool(1)
        self._lock = threading.Lock()
        self._closed = False
        self._inside = 0
        self._helper: _Helper | None = None

    def submit(self, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Run a function, which may call `decode`, on the helper's thread.

        Raises:
            DecodeQueueFull: If as many images wait as may.
            RuntimeError: After `shutdown`.
        """
        with self._lock:
            if self._inside > MAX_WAITING:
                wait_s = math.ceil(self._timeout_s)
                raise DecodeQueueFull(
                    f"{MAX_WAITING} images that are slow to decode are waiting, and that is the "
                    f"limit; try again in {wait_s} s or send smaller ones",
                    {"Retry-After": str(wait_s)},
                )
            self._inside += 1
        future = self._lane.submit(fn, *args, **kwargs)
        future.add_done_callback(lambda _: self._leave())

    def decode(self, decoder: ImageDecoder, data: bytes) -> DecodedImage:
        """Decode an image in the process; on the helper's thread only.

        Raises:
            InvalidInput: As for the decoder, and if it takes too long or ends the process.
        """
        reused = self._helper is not None
        try:
            return self._decode(decoder, data)
        except (PeerGone, ConnectionError):
            self._kill()
            if reused and not self._closed:  # it may have been killed while it was idle
                return self.decode(decoder, data)
            raise InvalidInput(
                "the image ends the process that decodes it; save it again as a baseline JPEG or "
                "a PNG",
                "decode_crash",
            ) from None

    def shutdown(self) -> None:
        """End the process and the thread; images that wait are dropped."""
        with self._lock:
            self._closed = True
            helper = self._helper
        if helper is not None:
            helper.process.kill()  # the thread closes the rest, if it waits
        self._lane.shutdown()
        self._kill()

    def _decode(self, decoder: ImageDecoder, data: bytes) -> DecodedImage:
        connection = self._running().connection
        until_s = self._clock() + self._timeout_s
        try:
            connection.settimeout(self._timeout_s)
            send_image(connection, decoder, data)
            connection.settimeout(max(until_s - self._clock(), 1e-3))
            return receive_decoded(connection, decoder)
        except TimeoutError:
            log.warning("killed a decoder that worked for %g s on one image", self._timeout_s)
            self._kill()
            raise InvalidInput(
                f"the image takes longer than {self._timeout_s:g} s to decode; scale it down, or "
                f"save it as a baseline JPEG or a PNG",
                "decode_timeout",
            ) from None

    def _running(self) -> _Helper:
        """Return the process; start it if there is none."""
        with self._lock:
            if self._closed:
                raise PeerGone
            if self._helper is None:
                self._helper = _start()
            return self._helper

    def _kill(self) -> None:
        with self._lock:
            helper, self._helper = self._helper, None
        if helper is not None:
            helper.kill()

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1


def _start() -> _Helper:
    """Start a process and wait until it is ready."""
    ours, theirs = socket.socketpair()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}
    own["MALLOC_MMAP_THRESHOLD_"] = str(2**20)  # large images go back to the system once freed
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "server.decode_process"],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            env={**os.environ, **own},
            start_new_session=True,  # Ctrl-C in a terminal is the server's to answer
        )
    helper = _Helper(process, ours)
    try:
        ours.settimeout(START_S)
        receive(ours, len(READY))
    except (PeerGone, OSError) as error:
        helper.kill()
        raise RuntimeError(
            f"the process that decodes slow images did not start ({error or 'it ended'}); "
            "its standard error says why"
        ) from error
    return helper
