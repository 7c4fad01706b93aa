"""The orientation in which a camera stored an image, read without decoding anything else."""

import contextlib
import re
import struct
from typing import NamedTuple

from PIL import Image

# The transpose that turns each EXIF orientation upright.
UPRIGHT = dict(
    enumerate(
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ),
        start=2,
    )
)
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations whose width is the upright image's height
ORIENTATION_TAG, MAX_TAGS = 0x0112, 512
INTEGERS = {1: "B", 3: "H", 4: "I"}  # struct's letters of the integer types of EXIF
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


class Metadata(NamedTuple):
    """A file without its metadata, and those of them that change how the image looks.

    Attributes:
        file: The file without them.
        exif: The EXIF data.
        xmp: The XMP packet.
        icc: The colour profile; as it is packed in a PNG, if `packed`.
        packed: Whether it is packed.
        gamma: A PNG's exponent of its levels, unless a profile or a mark of sRGB overrides it.
    """

    file: bytes
    exif: bytes | None
    xmp: bytes | None
    icc: bytes | None = None
    packed: bool = False
    gamma: float | None = None


def read_orientation(exif: bytes | None, xmp: bytes | None) -> int | None:
    """Read the orientation; None if the image is upright or its metadata are unreadable.

    Args:
        exif: The EXIF data, with or without their "Exif" mark.
        xmp: The XMP packet, which counts where the EXIF data name no orientation.
    """
    orientation = None
    if exif is not None:
        try:
            orientation = _read_exif(exif.removeprefix(b"Exif\0\0"))
        except (struct.error, KeyError):
            return None
    if orientation is None and xmp is not None and (found := XMP_ORIENTATION.search(xmp)):
        orientation = int(found[1])
    return orientation if orientation in UPRIGHT else None


def orientation_of(image: Image.Image) -> int | None:
    """Read the orientation of an opened image; None as for `read_orientation`."""
    raw, xmp = image.info.get("Raw profile type exif"), image.info.get("xmp")
    exif = image.info.get("exif") or (None if raw is None else decode_raw_profile(raw.encode()))
    return read_orientation(exif, xmp or _encoded(image.info.get("XML:com.adobe.xmp")))


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height after applying the image's EXIF orientation."""
    return image.size[::-1] if orientation_of(image) in SIDEWAYS else image.size


def decode_raw_profile(text: bytes) -> bytes | None:
    """Decode EXIF data as ImageMagick writes them into a PNG: three lines, then hexadecimal."""
    digits = b"".join(text.split(b"\n")[3:])
    with contextlib.suppress(ValueError):
        return bytes.fromhex(digits[: len(digits) // 2 * 2].decode("latin-1"))
    return None


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode(errors="replace")


def _read_exif(tiff: bytes) -> int | None:
    """Find the tag in the first directory; `struct.error` or KeyError if that is damaged."""
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for index in range(min(count, MAX_TAGS)):
        place = start + 2 + 12 * index
        tag, kind, values = struct.unpack_from(order + "HHI", tiff, place)
        if tag == ORIENTATION_TAG and values == 1 and kind in INTEGERS:
            (value,) = struct.unpack_from(order + INTEGERS[kind], tiff, place + 8)
            return int(value)
    return None
