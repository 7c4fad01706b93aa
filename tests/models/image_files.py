"""Image files for tests, made byte by byte."""

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def smooth(height: int = 32, width: int = 32) -> Pixels:
    """Make an image that lossy formats change little."""
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([255 * down, 255 * across, 255 - 127 * (down + across)], -1).astype(np.uint8)


def encode(image: Image.Image | Pixels, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image.save(stream, format, **options)
    return stream.getvalue()


def segment(marker: int, data: bytes) -> bytes:
    """Make a segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def with_scans(scans: int, side: int = 16) -> bytes:
    """Make a grey progressive JPEG: one scan of the means, then empty scans."""
    frame = struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0"
    dc_codes = segment(0xC4, b"\0" + bytes([1]) + bytes(15) + b"\0")
    ac_codes = segment(0xC4, b"\x10" + bytes([1]) + bytes(15) + b"\0")
    means = segment(0xDA, b"\1\1\0\0\0\1") + bytes(side * side // 512 + 1)
    bands = segment(0xDA, b"\1\1\0\1\77\0") + bytes(side * side // 512 + 1)
    tables = segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, frame) + dc_codes + ac_codes
    return b"\xff\xd8" + tables + means + bands * (scans - 1) + b"\xff\xd9"


def chunk(kind: bytes, body: bytes) -> bytes:
    """Make a chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(chunks: Iterable[tuple[bytes, bytes]], side: int = 8) -> bytes:
    """Make a black PNG with chunks before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    extra = b"".join(chunk(kind, body) for kind, body in chunks)
    pixels = chunk(b"IDAT", zlib.compress(bytes((3 * side + 1) * side)))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + chunk(b"IEND", b"")


def exif_of(orientation: int, kind: int = 3, order: str = "<") -> bytes:
    """Make EXIF data of one tag."""
    mark = b"II" if order == "<" else b"MM"
    value = struct.pack(order + {1: "B", 3: "H", 4: "I"}[kind], orientation).ljust(4, b"\0")
    entry = struct.pack(order + "HHI", 0x0112, kind, 1) + value
    return mark + struct.pack(order + "HIH", 42, 8, 1) + entry + bytes(4)
