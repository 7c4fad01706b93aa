"""JSON bodies of other servers' protocols: nested, with long lists of numbers, and bounded.

A small body is read at once. Of a large one every value is counted before it is made, and the
numbers of a list become an array block by block, so that neither the memory nor the time in which
the interpreter is locked grows beyond a small multiple of the body's bytes.
"""

from typing import Any

import numpy as np
import pydantic_core
from numpy.typing import NDArray

from server.errors import InvalidContent, MalformedRequest, TooComplex
from server.json_body import BLOCK_BYTES, FlatReader

TREE_BYTES = 16 * 1024  # up to which all values of a body may become objects at once
MOST_VALUES, MOST_DEPTH = 2**16, 12
FEW_NUMBERS_BYTES = 64  # a list so short, a shape for instance, stays a list of exact numbers
LONGEST_KEY = 256
FIRST_OF_NUMBER = frozenset(b"-0123456789")


def read_object(body: bytes | memoryview) -> dict[str, Any]:
    """Read an object; in a large body, a list of many numbers becomes a float32 array.

    Args:
        body: JSON in UTF-8, perhaps with a byte order mark.

    Raises:
        MalformedRequest: If it is not JSON.
        InvalidContent: If it is no object.
        TooComplex: If it holds more values, or deeper ones, than any honest body.
    """
    data = bytes(body)
    if len(data) <= TREE_BYTES:
        try:
            given = pydantic_core.from_json(data, allow_inf_nan=False)
        except ValueError:  # perhaps half a character or a byte order mark; or no JSON
            given = _NestedReader(data, ()).read_any()
    else:
        given = _NestedReader(data, ()).read_any()
    if not isinstance(given, dict):
        raise InvalidContent("the body should be an object")
    return given


class _NestedReader(FlatReader):
    """Reads one body from its begin to its end, whatever is nested in it."""

    def read_any(self) -> Any:
        self._values = 0
        given = self._nested(0)
        if self._next():
            self._refuse("the end of the body")
        return given

    def _nested(self, depth: int) -> Any:
        self._values += 1
        if self._values > MOST_VALUES:
            raise TooComplex(
                f"the body holds more than {MOST_VALUES} values; send numbers flat, or less at once"
            )
        if depth > MOST_DEPTH:
            raise TooComplex(f"the body nests deeper than {MOST_DEPTH} levels; flatten it")
        first = self._next()
        if first == b"{":
            return self._object(depth)
        if first == b"[":
            return self._list(depth)
        return self._text_or_word()

    def _object(self, depth: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        count = 0
        while self._goes_on(count, b"}"):
            if self._next() != b'"':
                self._refuse("a name in double quotes")
            if self._body.find(b'"', self._at + 1, self._at + LONGEST_KEY) < 0:
                raise InvalidContent(f"a field's name has more than {LONGEST_KEY} bytes")
            name = self._text()
            self._skip(b":")
            fields[name] = self._nested(depth + 1)
            count += 1
        return fields

    def _list(self, depth: int) -> Any:
        items: list[Any] = []
        while self._goes_on(len(items), b"]"):
            if not items and self._body[self._at] in FIRST_OF_NUMBER:
                end = self._body.find(b"]", self._at)
                if end > self._at + FEW_NUMBERS_BYTES:
                    return self._numbers(end)
            items.append(self._nested(depth + 1))
        return items

    def _numbers(self, end: int) -> NDArray[np.float32]:
        """Read a list of numbers up to the bracket at its end, and pass it."""
        blocks = []
        while self._at < end:
            cut = end
            if end - self._at > BLOCK_BYTES:
                cut = self._body.rfind(b",", self._at, self._at + BLOCK_BYTES)
                if cut < 0:
                    self._refuse("numbers, each followed by a comma")
            blocks.append(self._block(cut))
            self._at = cut + 1
            if cut < end and self._next() == b"]":
                self._refuse("a number")
        self._at = end + 1
        return np.concatenate(blocks)

    def _block(self, cut: int) -> NDArray[np.float32]:
        try:
            numbers = pydantic_core.from_json(
                b"[" + self._body[self._at : cut] + b"]", allow_inf_nan=False
            )
        except ValueError as error:
            raise MalformedRequest(
                f"the list of numbers at byte {self._at} is not JSON: {error}"
            ) from error
        return number_array(numbers, f"the list at byte {self._at}")


def number_array(numbers: list[Any], where: str) -> NDArray[np.float32]:
    """Return a list of numbers as an array.

    Raises:
        InvalidContent: If an item is no number, or no float32 holds it.
    """
    if not set(map(type, numbers)) <= {int, float}:
        raise InvalidContent(f"{where} mixes numbers with other values; send numbers alone")
    try:
        with np.errstate(over="ignore"):
            array = np.array(numbers, np.float64).astype(np.float32)
    except OverflowError:
        array = np.array([np.inf], np.float32)
    if not np.isfinite(array).all():
        raise InvalidContent(f"{where} holds a number beyond float32; send smaller ones")
    return array
