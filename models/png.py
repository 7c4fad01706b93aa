"""What the chunks of a PNG tell before it is decoded."""

import zlib

from models.orientation import Metadata, decode_raw_profile

START = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 10_000  # encoders write a chunk for every 8 KiB, so a file of 32 MiB has about 4,000
METADATA = frozenset((b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"))
RAW_EXIF, XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"
MAX_TEXT_BYTES = 2**16  # unpacked; an orientation stands at the beginning


def split_metadata(data: bytes) -> Metadata:
    """Take comments, profiles and EXIF data out of a PNG, so that no decoder unpacks them.

    Raises:
        ValueError: If the file has too many chunks.
    """
    kept: list[bytes] = []
    begin, position = 0, len(START)
    exif = raw_exif = xmp = icc = gamma = None
    is_srgb = False
    for _ in range(MAX_CHUNKS):
        kind, length = data[position + 4 : position + 8], data[position : position + 4]
        end = position + 12 + int.from_bytes(length, "big")
        if len(kind) < 4 or end > len(data):
            file = b"".join([*kept, data[begin:]]) if begin else data
            gamma = None if is_srgb or icc is not None else gamma
            return Metadata(file, exif or raw_exif, xmp, icc, icc is not None, gamma)
        if kind in METADATA:
            kept.append(data[begin:position])
            begin, body = end, data[position + 8 : end - 4]
            if kind == b"eXIf":
                exif = body
            elif kind == b"iCCP":
                icc = body.partition(b"\0")[2][1:]  # behind its name and how it is packed
            elif kind in (b"tEXt", b"zTXt") and body.startswith(RAW_EXIF + b"\0"):
                text = body[len(RAW_EXIF) + 1 :]
                raw_exif = decode_raw_profile(text if kind == b"tEXt" else unpack(text[1:]))
            elif kind == b"iTXt" and body.startswith(XMP + b"\0"):
                xmp = _international_text(body[len(XMP) + 1 :])
        elif kind == b"sRGB":
            is_srgb = True
        elif kind == b"gAMA" and length == b"\0\0\0\4":
            gamma = int.from_bytes(data[position + 8 : end - 4], "big") / 100_000
        position = end
    raise ValueError(f"the PNG has more than {MAX_CHUNKS} chunks; save it again with fewer")


def _international_text(body: bytes) -> bytes:
    """The text of an iTXt chunk behind its keyword: packed?, how, language, keyword, text."""
    text = body[2:].split(b"\0", 2)[-1]
    return unpack(text) if body[:1] == b"\1" else text


def unpack(packed: bytes) -> bytes:
    """Unpack the first 64 KiB of a text or a profile; nothing if it is damaged."""
    try:
        return zlib.decompressobj().decompress(packed, MAX_TEXT_BYTES)
    except zlib.error:
        return b""
