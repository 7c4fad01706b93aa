"""Files sent in base64, decoded in steps that leave the interpreter to others in between."""

import base64
import binascii
import re

from server.errors import InvalidContent

BLOCK = 128 * 1024  # characters that are decoded in one step, which takes half a millisecond
URL, MOST_DATA_HEAD = re.compile(r"\s*[a-z]{3,6}://", re.IGNORECASE), 200
FILLING = "=" + " \t\n\r\v\f"  # what may follow the last group


def decode_base64(text: str) -> bytes:
    """Decode an image file sent as base64, or as a `data:` URL.

    Lines may be broken, and the last group need not be filled up, as some encoders do it.

    Raises:
        InvalidContent: If it is not base64.
    """
    start = 0
    if text[:5].lower().startswith("data:"):
        if ";base64," not in text[:MOST_DATA_HEAD].lower():
            raise InvalidContent("the image is a data: URL without base64; encode it in base64")
        start = text.index(",") + 1
    try:
        if len(text) <= BLOCK and not start:
            try:
                return base64.b64decode(text, validate=True)
            except ValueError:
                pass  # it may have lines
        return _decode_in_blocks(text, start)
    except ValueError as error:
        if URL.match(text):
            raise InvalidContent(
                "the image is a URL, and URLs are not fetched; send the file itself in base64"
            ) from error
        raise InvalidContent(f"the image is not base64: {error}") from error


def _decode_in_blocks(text: str, start: int) -> bytes:
    end = _end_of_groups(text, start)
    parts, rest = [], ""
    for at in range(start, end, BLOCK):
        block = rest + "".join(text[at : min(at + BLOCK, end)].split())
        if "=" in block:
            raise binascii.Error("Excess data after padding")
        groups = len(block) // 4 * 4
        parts.append(base64.b64decode(block[:groups], validate=True))
        rest = block[groups:]
    parts.append(base64.b64decode(rest + "=" * (-len(rest) % 4), validate=True))
    return b"".join(parts)


def _end_of_groups(text: str, start: int) -> int:
    """Where the filling at the end begins."""
    end = len(text)
    while end > start:
        begin = max(end - BLOCK, start)
        kept = len(text[begin:end].rstrip(FILLING))
        if kept:
            return begin + kept
        end = begin
    return start
