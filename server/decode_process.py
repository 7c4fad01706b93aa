"""The process that decodes slow images: bytes in, pixels out, over its standard input.

`DecodeHelper` starts it as `python -m server.decode_process`. It imports nothing of the server,
holds one image at a time, and ends with its parent.
"""

import contextlib
import fcntl
import os
import resource
import select
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import AvifImagePlugin

from models.images import DecodedImage, ImageDecoder, InvalidInput

READY = b"\1"
FITS: tuple[Literal["cover", "stretch"], ...] = ("cover", "stretch")
# Height, width, place in FITS, share to keep, the three bounds, bytes.
REQUEST = struct.Struct("!IIBdQQIQ")
ANSWER = struct.Struct("!?IIQ")  # whether it was decoded, the original's width and height, bytes
OWN_MEMORY, BYTES_PER_PIXEL = 2**30, 32  # addresses: of libraries, and for some copies of an image


class PeerGone(Exception):
    """The other process has closed its end."""


def send_image(peer: socket.socket, decoder: ImageDecoder, data: bytes) -> None:
    """Ask for an image to be decoded."""
    fit = FITS.index(decoder.fit)
    bounds = decoder.max_pixels, decoder.max_pixels_per_byte, decoder.max_scans
    form = decoder.height, decoder.width, fit, decoder.crop
    peer.sendall(REQUEST.pack(*form, *bounds, len(data)))
    peer.sendall(data)


def receive_decoded(peer: socket.socket, decoder: ImageDecoder) -> DecodedImage:
    """Receive the answer.

    Raises:
        InvalidInput: If the image could not be decoded.
        PeerGone: If the process has ended.
    """
    decoded, width, height, count = ANSWER.unpack(receive(peer, ANSWER.size))
    body = receive(peer, count)
    if not decoded:
        bound, _, sentence = body.decode().partition("\n")
        raise InvalidInput(sentence, bound or None)
    pixels = np.frombuffer(body, np.uint8).reshape(decoder.height, decoder.width, 3)
    return DecodedImage(pixels, (width, height))


def receive(peer: socket.socket, count: int) -> bytearray:
    """Receive so many bytes.

    Raises:
        PeerGone: If they end before.
    """
    body = bytearray(count)
    left = memoryview(body)
    while left:
        got = peer.recv_into(left)
        if not got:
            raise PeerGone
        left = left[got:]
    return body


def serve(parent: socket.socket) -> None:
    """Decode one image after the other, until the parent closes its end."""
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    parent.sendall(READY)
    with contextlib.suppress(PeerGone, ConnectionError):
        while True:
            height, width, fit, crop, pixels, per_byte, scans, count = REQUEST.unpack(
                receive(parent, REQUEST.size)
            )
            decoder = ImageDecoder(height, width, FITS[fit], pixels, per_byte, scans, crop)
            _bound_memory(decoder.max_pixels)
            data = receive(parent, count)
            with _ending_with(parent):
                answer = _answer(decoder, bytes(data))
            parent.sendall(answer)


def _answer(decoder: ImageDecoder, data: bytes) -> bytes:
    try:
        pixels, (width, height) = decoder.decode(data)
    except InvalidInput as error:
        sentence = f"{error.bound or ''}\n{error}".encode()
        return ANSWER.pack(False, 0, 0, len(sentence)) + sentence
    return ANSWER.pack(True, width, height, pixels.nbytes) + pixels.tobytes()


def _bound_memory(pixels: int) -> None:
    """Let an image that takes far more memory than its header tells fail, and nothing else."""
    most, now = resource.getrlimit(resource.RLIMIT_AS)[1], OWN_MEMORY + BYTES_PER_PIXEL * pixels
    soft = now if most == resource.RLIM_INFINITY else min(now, most)
    resource.setrlimit(resource.RLIMIT_AS, (soft, most))


@contextlib.contextmanager
def _ending_with(parent: socket.socket) -> Iterator[None]:
    """Let the kernel end this process once the parent closes its end, whatever decoding does.

    No thread can see to that, since a decoder may hold the interpreter's lock.
    """
    flags = fcntl.fcntl(parent, fcntl.F_GETFL)
    fcntl.fcntl(parent, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(parent, fcntl.F_SETFL, flags | os.O_ASYNC)  # SIGIO, which ends a process
    if select.select([parent], [], [], 0)[0]:  # it has closed before the line above
        sys.exit()
    yield
    fcntl.fcntl(parent, fcntl.F_SETFL, flags)


if __name__ == "__main__":
    serve(socket.socket(fileno=sys.stdin.fileno()))
