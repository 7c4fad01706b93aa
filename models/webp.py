"""The size of a WebP, read from its header: libwebp reserves memory for it before Pillow tells."""

import struct

START, MARK = b"RIFF", b"WEBP"


def is_webp(data: bytes) -> bool:
    """Whether the bytes begin as a WebP does."""
    return data.startswith(START) and data[8:12] == MARK


def size_of(data: bytes) -> tuple[int, int] | None:
    """Return width and height of the canvas; None if the header is damaged."""
    kind = data[12:16]
    try:
        if kind == b"VP8X":
            low = struct.unpack_from("<HBHB", data, 24)
            return low[0] + (low[1] << 16) + 1, low[2] + (low[3] << 16) + 1
        if kind == b"VP8L":
            (packed,) = struct.unpack_from("<I", data, 21)
            return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
        if kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    except struct.error:
        pass
    return None
