"""What the segments of a JPEG tell before it is decoded."""

import re
import struct

import numpy as np

from models.orientation import Metadata

MAX_PLAIN_SEGMENTS = 64
MAX_SEGMENTS = 1000  # of the header; also read to tell real scans from bytes that look like them
START, SCAN, END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
EXIF, XMP, ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
ARITHMETIC = re.compile(rb"\xff[\xc9\xca\xcb]")  # frames that are coded so; rare and slow
SCAN_MARKER = re.compile(SCAN)
SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
# Frame, scan, quantisation, Huffman codes, restart interval, JFIF header and comment.
PLAIN_MARKERS = frozenset((0xC0, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xFE))
# Application data and comments, but not those that name the colours (JFIF's and Adobe's).
METADATA = frozenset(range(0xE1, 0xF0)) - {0xEE} | {0xFE}
SHORT_BYTES = 8192


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG that is nothing but an image; None for any other file.

    Such a file has one baseline scan of grey or three channels, and neither metadata that may
    turn it nor colours of Adobe's.
    """
    if not (data.startswith(START) and data.endswith(END)):
        return None
    position, size, channels = 2, None, 0
    try:
        for _ in range(MAX_PLAIN_SEGMENTS):
            mark, marker, length = struct.unpack_from(">BBH", data, position)
            if mark != 0xFF or marker not in PLAIN_MARKERS:
                return None
            if marker == 0xDA:
                return size if data[position + 4] == channels else None
            if marker == 0xC0:
                bits, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
                if size is not None or bits != 8 or channels not in (1, 3) or not height * width:
                    return None
                size = width, height
            position += 2 + max(length, 2)
    except (struct.error, IndexError):
        pass
    return None


def split_metadata(data: bytes) -> Metadata:
    """Take the metadata out of a JPEG, so that no decoder reads them.

    Raises:
        ValueError: If the header has too many segments.
    """
    kept, exif, xmp, icc, begin, position = [], b"", None, b"", 0, 2
    for _ in range(MAX_SEGMENTS):
        segment = SEGMENT.search(data, position)
        if segment is None or segment[0] in (SCAN, END):
            kept.append(data[begin:] if begin else data)
            return Metadata(b"".join(kept) if begin else data, exif or None, xmp, icc or None)
        start = segment.end()
        position = start + max(int.from_bytes(data[start : start + 2], "big"), 2)
        if segment[0][1] in METADATA:
            kept.append(data[begin : segment.start()])
            begin, body = position, data[start + 2 : position]
            if body.startswith(EXIF):  # longer data continue in the next segment
                exif += body.removeprefix(EXIF) if len(exif) < 2**20 else b""
            elif body.startswith(XMP):
                xmp = body.removeprefix(XMP)
            elif body.startswith(ICC):  # then the part's number and how many there are
                icc += body[len(ICC) + 2 :] if len(icc) < 2**16 else b""
    raise ValueError(
        f"the JPEG has more than {MAX_SEGMENTS} segments before its image; save it again without "
        f"metadata"
    )


def may_be_arithmetic(data: bytes) -> bool:
    """Whether a frame of arithmetic coding may be among the first segments."""
    return ARITHMETIC.search(data, 0, SHORT_BYTES) is not None


def count_scans(data: bytes, most: int) -> int:
    """Count the scans as a decoder meets them, up to one more than `most`.

    Videos after the image hold the marker's bytes too, so this follows the segments.
    """
    position = scans = 0
    for _ in range(MAX_SEGMENTS):
        segment = SEGMENT.search(data, position)
        if segment is None or segment[0] == END:
            return scans
        scans += segment[0] == SCAN
        if scans > most:
            return scans
        start = segment.end()
        position = start + max(int.from_bytes(data[start : start + 2], "big"), 2)
    return most + 1


def count_scan_markers(data: bytes) -> int:
    """Count the two bytes of the scan marker: at least the scans, ten times as fast as `count`."""
    if len(data) <= SHORT_BYTES:
        return len(SCAN_MARKER.findall(data))
    marker = int.from_bytes(SCAN, "little")
    # Pairs of bytes that start at even and at odd offsets.
    pairs = [np.frombuffer(data, "<u2", (len(data) - offset) // 2, offset) for offset in (0, 1)]
    return sum(int(np.count_nonzero(values == marker)) for values in pairs)
