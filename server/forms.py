"""Forms (`multipart/form-data`), read as UTF-8 and nothing else.

A client may name any of Python's codecs as the charset. Some take time in the square of the text's
length, and every unknown name is remembered for good, so no name may reach the codecs.
"""

import base64
import binascii
import io
import re

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile

from server.errors import MalformedRequest, TooComplex, UnsupportedMedia
from server.utf8 import decode_utf8

LONGEST_TYPE = 1000  # of a content type: reading its parameters takes the square of its length
LONGEST_BOUNDARY = 256
BLOCK_BYTES = 256 * 1024  # of a form, searched in one step
MOST_PART_HEAD, MOST_PART_FIELDS = 4096, 16
UTF_8 = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
AS_IT_IS = frozenset({b"", b"binary", b"8bit", b"7bit"})  # transfer encodings
# Name and value of each parameter; a quoted value may hold anything.
PARAMETER = re.compile(r";\s*([^=;\s]+)\s*=\s*(\"(?:[^\"\\]|\\.)*\"|[^;]*)")
# A charset as RFC 2231 spells it, too: charset*=utf-8''NAME, charset*0=NAME.
CHARSET_NAME = re.compile(r"charset(?:\*\d*)*", re.IGNORECASE)
RFC_2231_PREFIX = re.compile(r"utf-8'[^']*'", re.IGNORECASE)


def require_utf_8(content_type: str) -> None:
    """Check the charset of a content type.

    Raises:
        UnsupportedMedia: If it is not UTF-8, or its subset ASCII, or if the type is too long.
    """
    if len(content_type) > LONGEST_TYPE:
        raise UnsupportedMedia(
            f"the content type has {len(content_type)} characters; {LONGEST_TYPE} are the most"
        )
    _, params = parse_options_header(content_type)
    _require(params.get(b"charset", b"utf-8").decode("latin-1"))  # as the form's parser reads it
    for name, value in PARAMETER.findall(content_type):
        if CHARSET_NAME.fullmatch(name):
            _require(RFC_2231_PREFIX.sub("", value.strip().strip('"'), count=1))


def _require(name: str) -> None:
    if name.lower() not in UTF_8:
        raise UnsupportedMedia(f"charset {name[:40]!r} is not taken; send UTF-8")


def parse_form(content_type: str, body: bytes, max_parts: int) -> FormData:
    """Read a form; its files stay in memory.

    It is cut by searching for the boundary, which takes a moment whatever stands between.

    Args:
        content_type: `multipart/form-data` and its parameters.
        body: The whole form.
        max_parts: The most parts.

    Raises:
        MalformedRequest: If it is no form.
        TooComplex: If it has too many parts, or a part has too many headers.
        UnsupportedMedia: If it, a text of it or its field `_charset_` names another charset than
            UTF-8.
    """
    require_utf_8(content_type)
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= LONGEST_BOUNDARY:
        raise MalformedRequest(
            f"the form's content type names no boundary of 1 to {LONGEST_BOUNDARY} characters"
        )
    parts: list[tuple[str, UploadFile | str]] = []
    at = _begin(body, b"--" + boundary)
    while not body.startswith(b"--", at):
        if len(parts) == max_parts:
            raise TooComplex(f"the form has more than {max_parts} parts; send fewer")
        fields, start = _part_head(body, at)
        end = _find(body, b"\r\n--" + boundary, start)
        if end < 0:
            raise MalformedRequest("the form has no end: its last boundary is missing")
        parts.append(_part(fields, body[start:end]))
        at = end + len(boundary) + 4
    for name, value in parts:
        if name == "_charset_" and isinstance(value, str):
            _require(value)
    return FormData(parts)


def _begin(body: bytes, delimiter: bytes) -> int:
    """Where the first part begins, or its `--` if there is none."""
    place = 0 if body.startswith(delimiter) else _find(body, b"\r\n" + delimiter, 0) + 2
    if place == 1:
        raise MalformedRequest("the form does not hold the boundary that its content type names")
    return place + len(delimiter)


def _find(body: bytes, wanted: bytes, start: int) -> int:
    """Search as `bytes.find` does, but leave the interpreter to others in between."""
    for at in range(start, len(body), BLOCK_BYTES):
        place = body.find(wanted, at, at + BLOCK_BYTES + len(wanted) - 1)
        if place >= 0:
            return place
    return -1


def _part_head(body: bytes, at: int) -> tuple[dict[bytes, bytes], int]:
    """Read a part's headers; return them and where its content begins."""
    line = body.find(b"\r\n", at, at + MOST_PART_HEAD)
    if line < 0 or body[at:line].strip(b" \t"):
        raise MalformedRequest("a boundary of the form is not followed by a line end")
    end = body.find(b"\r\n\r\n", line, line + MOST_PART_HEAD)
    lines = body[line + 2 : max(end, 0)].split(b"\r\n", MOST_PART_FIELDS)
    if end < 0 or len(lines) > MOST_PART_FIELDS:
        raise TooComplex(
            f"a part of the form has no end of its headers within {MOST_PART_HEAD} bytes and "
            f"{MOST_PART_FIELDS} fields; send fewer"
        )
    fields = {}
    for field in lines:
        name, colon, value = field.partition(b":")
        if not colon:
            raise MalformedRequest("a header of the form's parts has no colon")
        fields[name.strip().lower()] = value.strip()
    return fields, end + 4


def _part(fields: dict[bytes, bytes], content: bytes) -> tuple[str, UploadFile | str]:
    disposition, params = parse_options_header(fields.get(b"content-disposition", b""))
    if disposition != b"form-data" or b"name" not in params:
        raise MalformedRequest("a part of the form has no name; give Content-Disposition a name")
    name = params[b"name"].decode("utf-8", "replace")
    content = _transferred(name, fields.get(b"content-transfer-encoding", b""), content)
    media_type = fields.get(b"content-type", b"")
    if b"filename" in params:
        file = UploadFile(
            io.BytesIO(content),
            size=len(content),
            filename=params[b"filename"].decode("utf-8", "replace"),
            headers=Headers(raw=list(fields.items())),
        )
        return name, file
    require_utf_8(media_type.decode("latin-1"))
    try:
        return name, decode_utf8(content)
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"the field {name!r:.80} is not UTF-8; send UTF-8") from error


def _transferred(name: str, encoding: bytes, content: bytes) -> bytes:
    """Return the content of a part as it was before the part was encoded, as in a mail."""
    kind = encoding.lower()
    if kind in AS_IT_IS:
        return content
    if kind != b"base64":
        raise UnsupportedMedia(
            f"the field {name!r:.80} has the transfer encoding {kind[:40].decode('latin-1')!r}; "
            f"send it in binary"
        )
    try:
        return base64.b64decode(content.translate(None, b" \t\r\n"), validate=True)
    except binascii.Error as error:
        raise MalformedRequest(f"the field {name!r:.80} is not the base64 that it says") from error
