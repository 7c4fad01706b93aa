"""Large JSON bodies, read without a tree of whatever a client sends.

pydantic first makes an object of every value of a body, also of those that it then refuses: 31 MiB
of empty lists take a gigabyte. A body of this API is flat: an object whose values are plain, or
lists of plain values. Here everything else is refused where it begins. No step takes long with the
interpreter locked, so that the event loop goes on meanwhile.
"""

import re
from collections.abc import Collection
from json import decoder
from typing import Any, NoReturn

from server.errors import InvalidContent, MalformedRequest, TooComplex
from server.spelling import LONGEST_NAME, field_hint
from server.utf8 import decode_utf8

MOST_FIELDS, MOST_ITEMS = 64, 4096
LONGEST_NUMBER = 64
BLOCK_BYTES = 64 * 1024  # of white space, or of a text with escapes, read in one step

SPACE = re.compile(rb"[ \t\n\r]*")
NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
# What a text holds up to its end or that of a block; an escape is not cut in two.
TEXT = re.compile(rb'(?:[^"\\]++|\\u[0-9a-fA-F]{4}|\\[^u])*+', re.DOTALL)
FIRST_HALF = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
UTF_8_MARK, UTF_16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
WORDS = {b"true": True, b"false": False, b"null": None}


def require_utf_8(body: bytes) -> None:
    """Check the encoding of a body by its first bytes; JSON begins with ASCII.

    Raises:
        MalformedRequest: If it is UTF-16 or UTF-32, with or without a byte order mark.
    """
    if body.startswith(UTF_16_MARKS) or b"\0" in body[:4]:
        raise MalformedRequest("the body is in UTF-16 or UTF-32; send JSON in UTF-8")


def read_flat_object(body: bytes, known: Collection[str]) -> dict[str, Any]:
    """Read an object of plain values and lists of plain values.

    Half a character (one surrogate without the other, escaped or not) becomes a lone surrogate. So
    it spoils no more than its own text, which the model's preprocessing refuses.

    Args:
        body: JSON in UTF-8.
        known: Names that fields may have.

    Raises:
        MalformedRequest: If it is not JSON in UTF-8.
        InvalidContent: If it is no object, a field is unknown, or a value is neither plain nor a
            list of plain values.
        TooComplex: If it holds too many fields or items, or too long a number.
    """
    require_utf_8(body)
    return FlatReader(body, known).read()


class FlatReader:
    """Reads one body from its begin to its end."""

    def __init__(self, body: bytes, known: Collection[str]) -> None:
        self._body, self._known = body, known
        self._at = len(UTF_8_MARK) if body.startswith(UTF_8_MARK) else 0

    def read(self) -> dict[str, Any]:
        """Read the whole body."""
        if self._next() != b"{":
            if self._next() != b"[":
                self._text_or_word()
            raise InvalidContent("the body should be an object")
        fields: dict[str, Any] = {}
        count = 0
        while self._goes_on(count, b"}"):
            if self._next() != b'"':
                self._refuse("a name in double quotes")
            name = self._name()
            self._skip(b":")
            fields[name] = self._value(name)
            count += 1
            if count > MOST_FIELDS:
                raise TooComplex(f"the body has more than {MOST_FIELDS} fields; send each once")
        if self._next():
            self._refuse("the end of the body")
        return fields

    def _name(self) -> str:
        """Read the name of a field.

        A long one is refused by its begin: no field is called so.
        """
        start = self._at + 1
        if self._body.find(b'"', start, start + LONGEST_NAME + 1) < 0:
            name = self._body[start : start + LONGEST_NAME].decode("utf-8", "replace")
            raise InvalidContent(f"unknown field {name!r:.80}")
        name = self._text()
        if name not in self._known:
            shown = name[: LONGEST_NAME + 1]
            hint = field_hint(shown, self._known)
            raise InvalidContent(f"unknown field {shown!r:.80}{hint}")
        return name

    def _value(self, name: str) -> Any:
        if self._next() != b"[":
            return self._plain(name)
        items: list[Any] = []
        while self._goes_on(len(items), b"]"):
            if len(items) == MOST_ITEMS:
                raise TooComplex(f"{name} holds more than {MOST_ITEMS} items; split it")
            items.append(self._plain(f"{name}.{len(items)}"))
        return items

    def _goes_on(self, count: int, end: bytes) -> bool:
        """Pass the begin of an object or list, or what follows a value; whether another comes."""
        if count == 0:
            self._at += 1
        found = self._next()
        if found == end:
            self._at += 1
            return False
        if count:
            self._skip(b",")
        return True

    def _plain(self, place: str) -> Any:
        if self._next() in (b"[", b"{"):
            raise InvalidContent(f"{place}: a list or an object is not taken here; give one value")
        return self._text_or_word()

    def _text_or_word(self) -> Any:
        if self._next() == b'"':
            return self._text()
        for word, value in WORDS.items():
            if self._body.startswith(word, self._at):
                self._at += len(word)
                return value
        match = NUMBER.match(self._body, self._at, self._at + LONGEST_NUMBER + 1)
        if match is None:
            self._refuse("a value")
        number = match.group()
        if len(number) > LONGEST_NUMBER:
            raise TooComplex(f"a number has more than {LONGEST_NUMBER} digits; send fewer")
        self._at = match.end()
        return int(number) if number.lstrip(b"-").isdigit() else float(number)

    def _text(self) -> str:
        """Read a text, most often in one step: it has no escapes."""
        start = self._at + 1
        end = self._body.find(b'"', start)
        if end < 0:
            self._refuse("the end of a text")
        if self._body.find(b"\\", start, end) < 0:
            self._at = end + 1
            return decode_utf_8(self._body, start, end)
        blocks = []
        while True:
            end = self._end_of_block(start)
            blocks.append(self._unescaped(start, end))
            start = end
            if self._body[start : start + 1] == b'"':
                self._at = start + 1
                return "".join(blocks)

    def _end_of_block(self, start: int) -> int:
        most = start + BLOCK_BYTES
        match = TEXT.match(self._body, start, most)
        assert match is not None, "it matches the empty text"
        end = match.end()
        if FIRST_HALF.search(self._body, max(end - 6, start), end):
            match = TEXT.match(self._body, end, end + 6)  # both halves come into one block
            end = end if match is None else match.end()
        if end == start and self._body[start : start + 1] != b'"':
            self._at = start
            self._refuse("an escape or the end of a text")
        return end

    def _unescaped(self, start: int, end: int) -> str:
        try:
            raw = f'{decode_utf_8(self._body, start, end)}"'
            text: str = decoder.scanstring(raw, 0, False)[0]  # type: ignore[attr-defined]
            return text
        except ValueError:  # the escape is none of JSON's
            self._at = start
            self._refuse("an escape")

    def _next(self) -> bytes:
        """Pass white space; the byte that follows, b"" at the end."""
        step = BLOCK_BYTES
        while step == BLOCK_BYTES:
            match = SPACE.match(self._body, self._at, self._at + BLOCK_BYTES)
            assert match is not None, "it matches nothing, too"
            step = match.end() - self._at
            self._at += step
        return self._body[self._at : self._at + 1]

    def _skip(self, mark: bytes) -> None:
        if self._next() != mark:
            self._refuse(repr(mark.decode()))
        self._at += 1
        self._next()

    def _refuse(self, wanted: str) -> NoReturn:
        raise MalformedRequest(f"the body is not JSON: expected {wanted} at byte {self._at}")


def decode_utf_8(body: bytes, start: int = 0, end: int | None = None) -> str:
    """Decode UTF-8 in which half characters may be, from one place to another.

    Raises:
        MalformedRequest: If it is none.
    """
    try:
        return decode_utf8(body, start, end, "surrogatepass")
    except UnicodeDecodeError as error:
        raise MalformedRequest("the body is not UTF-8; send UTF-8") from error
