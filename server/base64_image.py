"""Image files in base64 as clients write it, decoded in short steps."""

import base64
import binascii
import re

from server.errors import InvalidContent

BLOCK = 128 * 1024  # characters that are decoded in one step, which takes half a millisecond
URL = re.compile(r"\s*[a-z][a-z0-9+.-]{1,9}://", re.IGNORECASE)
DATA, MOST_DATA_HEAD = "data:", 200
URL_SAFE = bytes.maketrans(b"-_", b"+/")
ESCAPES = (("%2B", "+"), ("%2b", "+"), ("%2F", "/"), ("%2f", "/"), ("%3D", "="), ("%3d", "="))
BLANKS = b" \t\r\n\f\v"


def decode_base64(text: str) -> bytes:
    """Decode an image file sent as base64, or as a `data:` URL.

    Lines may be broken, the padding left out, and the alphabet that of URLs.

    Raises:
        InvalidContent: If it is not base64.
    """
    if len(text) <= BLOCK:
        try:
            return base64.b64decode(text, validate=True)
        except ValueError:
            pass  # it may have lines
    data, start = _encoded(text)
    try:
        return _decode_in_blocks(data, start)
    except ValueError as error:
        raise InvalidContent(f"the image is not base64: {error}") from error


def _encoded(text: str) -> tuple[str, int]:
    """Return the text that holds the base64, and where in it that begins."""
    head = text[:MOST_DATA_HEAD].lstrip()
    if URL.match(head):
        raise InvalidContent(
            "the image is a URL, and URLs are not fetched; send the file itself in base64"
        )
    if head[: len(DATA)].lower() != DATA:
        return text, 0
    head, comma, _ = head.partition(",")
    if not comma or ";base64" not in head.lower():
        raise InvalidContent("the image is a data: URL without base64; encode it in base64")
    for escape, character in ESCAPES if "%" in text else ():
        text = text.replace(escape, character)
    return text, text.index(",") + 1


def _decode_in_blocks(text: str, start: int) -> bytes:
    parts, rest, is_padded = [], b"", False
    for at in range(start, len(text), BLOCK):
        block = text[at : at + BLOCK].encode("ascii", "replace").translate(URL_SAFE, BLANKS)
        data = block.rstrip(b"=")
        if b"=" in data or (is_padded and data):
            raise binascii.Error("Excess data after padding")
        is_padded |= len(data) < len(block)
        data = rest + data
        groups = len(data) // 4 * 4
        parts.append(base64.b64decode(data[:groups], validate=True))
        rest = data[groups:]
    parts.append(base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True))
    return b"".join(parts)
