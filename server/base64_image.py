"""Image files in base64, as clients write it."""

import base64
import binascii
import re

from server.errors import InvalidContent

URL = re.compile(r"\s*[a-z][a-z0-9+.-]{1,9}://", re.IGNORECASE)
DATA, MOST_DATA_HEAD = "data:", 200
URL_SAFE = bytes.maketrans(b"-_", b"+/")
ESCAPES = (
    (b"%2B", b"+"),
    (b"%2b", b"+"),
    (b"%2F", b"/"),
    (b"%2f", b"/"),
    (b"%3D", b"="),
    (b"%3d", b"="),
)
BLANKS = b" \t\r\n\f\v"


def decode_base64(text: str) -> bytes:
    """Decode an image file sent as base64, or as a `data:` URL.

    Lines may be broken, the padding left out, and the alphabet that of URLs.

    Raises:
        InvalidContent: If it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    data = _encoded(text).translate(URL_SAFE, BLANKS).rstrip(b"=")
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidContent(f"the image is not base64: {error}") from error


def _encoded(text: str) -> bytes:
    """Return the base64 part of what is sent, as bytes; other bytes than base64's may be in it."""
    head = text[:MOST_DATA_HEAD].lstrip()
    if URL.match(head):
        raise InvalidContent(
            "the image is a URL, and URLs are not fetched; send the file itself in base64"
        )
    if head[: len(DATA)].lower() != DATA:
        return text.encode("ascii", "replace")
    head, comma, _ = head.partition(",")
    if not comma or ";base64" not in head.lower():
        raise InvalidContent("the image is a data: URL without base64; encode it in base64")
    data = text.partition(",")[2].encode("ascii", "replace")
    for escape, character in ESCAPES if b"%" in data else ():
        data = data.replace(escape, character)
    return data
