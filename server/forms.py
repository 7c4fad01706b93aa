"""Forms (`multipart/form-data`), read as UTF-8 and nothing else.

A client may name any of Python's codecs as the charset. Some take time in the square of the text's
length, and every unknown name is remembered for good, so no name may reach the codecs.
"""

import re

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from server.errors import MalformedRequest, UnsupportedMedia

UTF_8 = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
# Name and value of each parameter; a quoted value may hold anything.
PARAMETER = re.compile(r";\s*([^=;\s]+)\s*=\s*(\"(?:[^\"\\]|\\.)*\"|[^;]*)")
# A charset as RFC 2231 spells it, too: charset*=utf-8''NAME, charset*0=NAME.
CHARSET_NAME = re.compile(r"charset(?:\*\d*)*", re.IGNORECASE)
RFC_2231_PREFIX = re.compile(r"utf-8'[^']*'", re.IGNORECASE)


def require_utf_8(content_type: str) -> None:
    """Check the charset of a content type.

    Raises:
        UnsupportedMedia: If it is not UTF-8, or its subset ASCII.
    """
    _, params = parse_options_header(content_type)
    _require(params.get(b"charset", b"utf-8").decode("latin-1"))  # as the form's parser reads it
    for name, value in PARAMETER.findall(content_type):
        if CHARSET_NAME.fullmatch(name):
            _require(RFC_2231_PREFIX.sub("", value.strip().strip('"'), count=1))


def _require(name: str) -> None:
    if name.lower() not in UTF_8:
        raise UnsupportedMedia(f"charset {name[:40]!r} is not taken; send UTF-8")


async def read_form(request: Request, max_part_bytes: int) -> FormData:
    """Read a form; the caller closes it.

    Args:
        request: With a content type of `multipart/form-data`.
        max_part_bytes: The most bytes of a text.

    Raises:
        MalformedRequest: If it is no form.
        UnsupportedMedia: If it, a text of it or its field `_charset_` names another charset than
            UTF-8.
    """
    require_utf_8(request.headers["content-type"])
    parser = _Utf8Parser(request.headers, request.stream(), max_part_size=max_part_bytes)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise MalformedRequest(error.message) from error
    try:
        for name in form.getlist("_charset_"):
            if isinstance(name, str):
                _require(name)
    except UnsupportedMedia:
        await form.close()
        raise
    return form


class _Utf8Parser(MultiPartParser):
    """Starlette's parser, which passes over what the header of a text says of its charset."""

    def on_headers_finished(self) -> None:
        """The headers of one part are whole."""
        super().on_headers_finished()
        if self._current_part.file is None:
            for name, value in self._current_part.item_headers:
                if name == b"content-type":
                    require_utf_8(value.decode("latin-1"))
