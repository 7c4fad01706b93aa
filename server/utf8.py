"""UTF-8 decoded in steps that leave the interpreter to others in between."""

from typing import Literal

BLOCK_BYTES = 512 * 1024  # take a millisecond or two; all at once, 31 MiB take 90


def decode_utf8(
    raw: bytes,
    start: int = 0,
    end: int | None = None,
    errors: Literal["strict", "surrogatepass"] = "strict",
) -> str:
    """Decode bytes from one place to another.

    Args:
        raw: The bytes.
        start: The first place.
        end: Behind the last one; None: the end.
        errors: Of Python's codecs.

    Raises:
        UnicodeDecodeError: If they are not UTF-8.
    """
    end = len(raw) if end is None else end
    if end - start <= BLOCK_BYTES:
        return raw[start:end].decode("utf-8", errors)
    view, parts = memoryview(raw), []
    while start < end:
        cut = min(start + BLOCK_BYTES, end)
        least = cut - 3
        while least < cut < end and raw[cut] & 0xC0 == 0x80:  # within a character
            cut -= 1
        parts.append(str(view[start:cut], "utf-8", errors))
        start = cut
    return "".join(parts)
