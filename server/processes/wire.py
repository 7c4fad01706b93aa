"""Messages between the processes of a server, as bytes: fields as JSON, then raw arrays.

    u32 bytes of the whole message | u32 bytes of the header | header | array | array ...

The header is the JSON list [kind, fields, [[dtype, shape], ...]]. It and every array are padded to
a multiple of 8 bytes, so that arrays can be read where they lie.
"""

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import pydantic_core
from numpy.typing import NDArray

MOST_BYTES = 512 * 2**20
PREFIX = struct.Struct("<II")
ALIGNMENT = 8
NO_FIELDS: Mapping[str, Any] = MappingProxyType({})
DTYPES = {
    np.dtype(name).str: np.dtype(name)
    for name in (
        *("bool", "float16", "float32", "float64"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
}


class BadMessage(ValueError):
    """Bytes that are no message, or a message that the format cannot hold."""


class Message(NamedTuple):
    """What one process tells another.

    Attributes:
        kind: What it is about; the receiver chooses by it what to do.
        fields: What JSON can hold, and NaN and infinities.
        arrays: Arrays of booleans, integers and floats in the byte order of the machine.
    """

    kind: str
    fields: Mapping[str, Any] = NO_FIELDS
    arrays: tuple[NDArray[Any], ...] = ()


BEAT: Final = "beat"


def beat(loop_lag_s: float) -> Message:
    """Return the message that says that its sender is alive, and how late its event loop is."""
    return Message(BEAT, {"loop_lag_s": loop_lag_s})


def encode(message: Message, most_bytes: int = MOST_BYTES) -> list[bytes | memoryview]:
    """Return the parts that make up the bytes of a message; contiguous arrays are not copied.

    Raises:
        BadMessage: If the type of an array is not in `DTYPES`, or the message is too long.
    """
    kind, fields, arrays = message
    described: list[tuple[str, tuple[int, ...]]] = []
    parts: list[bytes | memoryview] = [b""]  # the place of the header
    size = 0
    for array in arrays:
        dtype, array_bytes = array.dtype.str, array.nbytes
        if dtype not in DTYPES:
            raise BadMessage(f"a message holds no array of {array.dtype}; convert it first")
        described.append((dtype, array.shape))
        if array_bytes:
            parts.append(np.ascontiguousarray(array).data.cast("B"))
            if padding := -array_bytes % ALIGNMENT:
                parts.append(bytes(padding))
                size += padding
            size += array_bytes
    header = pydantic_core.to_json(
        (kind, fields if type(fields) is dict else dict(fields), described),
        inf_nan_mode="constants",
    )
    header += b" " * (-len(header) % ALIGNMENT)
    size += PREFIX.size + len(header)
    if size > most_bytes:
        raise BadMessage(f"a message of {size} bytes is over the limit of {most_bytes}; split it")
    parts[0] = PREFIX.pack(size, len(header)) + header
    return parts


class MessageReader:
    """Puts messages together from the bytes of a stream, in pieces of any size.

    Arrays are read-only views on the bytes that were fed or filled in, which stay as they are and
    live as long as an array does; an array that would not be aligned there is copied.

    Args:
        most_bytes: The size of the largest message that is taken.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._prefix = b""  # of the next message, as long as it is not whole
        self._begun: memoryview | None = None  # the place of a message that is not whole
        self._filled = 0  # bytes of it that are there

    @property
    def is_between_messages(self) -> bool:
        """Whether no message has begun that is not whole."""
        return self._begun is None and not self._prefix

    @property
    def space(self) -> memoryview | None:
        """Where the rest of a message that has begun goes, or None if `feed` takes what comes."""
        return None if self._begun is None else self._begun[self._filled :]

    def fill(self, count: int) -> list[Message]:
        """Take note that so many bytes were written to `space`; return the message if it is whole.

        Raises:
            BadMessage: As `feed`.
        """
        assert self._begun is not None, "only a message that has begun has space"
        self._filled += count
        if self._filled < len(self._begun):
            return []
        whole, self._begun = self._begun.toreadonly(), None
        return [_decode(whole, 0, len(whole))]

    def feed(self, data: bytes | memoryview) -> list[Message]:
        """Take the next bytes of the stream; return the messages that are whole now, in order.

        Raises:
            BadMessage: If these bytes are no message. The stream cannot be read any further.
        """
        data = memoryview(self._prefix + data if self._prefix else data)
        messages: list[Message] = []
        start = 0
        if (space := self.space) is not None:
            start = min(len(space), len(data))
            space[:start] = data[:start]
            messages += self.fill(start)
        while (size := self._size_at(data, start)) and start + size <= len(data):
            messages.append(_decode(data, start, size))
            start += size
        if self._begun is None:
            self._begin(data[start:], size)
        return messages

    def _begin(self, data: memoryview, size: int | None) -> None:
        self._prefix = b"" if size else bytes(data)
        if size:
            self._begun, self._filled = np.empty(size, np.uint8).data, len(data)
            self._begun[: len(data)] = data

    def _size_at(self, data: memoryview, start: int) -> int | None:
        """The size of the message that starts there, or None if its prefix is not whole."""
        if len(data) - start < PREFIX.size:
            return None
        size: int
        size, header_bytes = PREFIX.unpack_from(data, start)
        if size > self._most_bytes:
            raise BadMessage(f"a message of {size} bytes is over the limit of {self._most_bytes}")
        if size < PREFIX.size + header_bytes or not header_bytes or size % ALIGNMENT:
            raise BadMessage(f"a message cannot have {size} bytes and a header of {header_bytes}")
        return size


def _decode(data: memoryview, start: int, size: int) -> Message:
    _, header_bytes = PREFIX.unpack_from(data, start)
    place, end = start + PREFIX.size + header_bytes, start + size
    try:
        header = bytes(data[start + PREFIX.size : place])
        kind, fields, described = pydantic_core.from_json(header, allow_inf_nan=True)
        if type(kind) is not str or type(fields) is not dict:
            raise BadMessage("the header of a message has no kind and fields")
        arrays = []
        for dtype, shape in described:
            if -1 in shape:  # NumPy takes it as "what fits", and refuses other negative sizes
                raise BadMessage(f"an array cannot have the shape {shape}")
            array = np.ndarray(tuple(shape), DTYPES[dtype], data, place)
            place += array.nbytes + -array.nbytes % ALIGNMENT
            if place > end:
                raise BadMessage(f"an array of shape {shape} is longer than its message")
            arrays.append(array if array.flags.aligned else array.copy())
    except BadMessage:
        raise
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise BadMessage(f"a message cannot be read: {error}") from error
    if place != end:
        raise BadMessage(f"a message holds {end - place} bytes that are part of no array")
    return Message(kind, fields, tuple(arrays))
