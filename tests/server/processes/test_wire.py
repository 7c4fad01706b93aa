import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from server.processes.wire import DTYPES, PREFIX, BadMessage, Message, MessageReader, encode

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: hnp.arrays(name, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
messages = st.builds(
    Message,
    st.text(max_size=8),
    st.dictionaries(st.text(max_size=3), json_values, max_size=3),
    st.lists(arrays, max_size=4).map(tuple),
)


def joined(message: Message) -> bytes:
    return b"".join(encode(message))


def read_one(data: bytes) -> Message:
    (message,) = MessageReader().feed(data)
    return message


def assert_same(read: Message, sent: Message) -> None:
    assert (read.kind, read.fields) == (sent.kind, sent.fields)
    for mine, theirs in zip(read.arrays, sent.arrays, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        assert mine.tobytes() == theirs.tobytes(), "to the bit, NaN included"


def with_header(header: Any, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return PREFIX.pack(PREFIX.size + len(text) + len(body), len(text)) + text + body


@given(st.lists(messages, max_size=4), st.data())
def test_messages_survive_any_split_of_their_bytes(
    sent: list[Message], data: st.DataObject
) -> None:
    whole = b"".join(map(joined, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    reader = MessageReader()
    read: list[Message] = []
    for start, end in pairwise([0, *cuts, len(whole)]):
        read += reader.feed(whole[start:end])
    assert reader.is_between_messages
    for mine, theirs in zip(read, sent, strict=True):
        assert_same(mine, theirs)


@given(messages)
def test_a_message_survives_byte_by_byte(sent: Message) -> None:
    reader, whole = MessageReader(), joined(sent)
    for place in range(len(whole) - 1):
        assert reader.feed(whole[place : place + 1]) == []
        assert not reader.is_between_messages
    (read,) = reader.feed(whole[-1:])
    assert_same(read, sent)


def test_numbers_that_json_lacks_survive() -> None:
    fields = read_one(joined(Message("a", {"x": [math.nan, math.inf, -math.inf]}))).fields
    nan, *others = fields["x"]
    assert math.isnan(nan) and others == [math.inf, -math.inf]


def test_a_message_of_a_kind_alone_has_no_fields_and_no_arrays() -> None:
    assert read_one(joined(Message("start"))) == ("start", {}, ())
    with pytest.raises(TypeError):
        Message("start").fields["x"] = 1  # type: ignore[index]


def test_contiguous_arrays_are_sent_without_a_copy() -> None:
    array = np.arange(1000)
    assert any(
        np.shares_memory(np.asarray(part), array) for part in encode(Message("a", {}, (array,)))[1:]
    )


def test_arrays_are_read_where_they_lie() -> None:
    data = joined(Message("a", {}, (np.arange(3, dtype=np.uint8), np.arange(9.0))))
    for array in read_one(data).arrays:
        assert np.shares_memory(array, np.frombuffer(data, np.uint8))
        assert array.flags.aligned and not array.flags.writeable


@pytest.mark.parametrize("offset", range(1, 8))
def test_arrays_are_aligned_wherever_a_piece_begins(offset: int) -> None:
    data = joined(Message("a", {}, (np.arange(9.0),)))
    reader = MessageReader()
    reader.feed(data[:offset])
    for message in reader.feed(data[offset:] + data):
        assert message.arrays[0].flags.aligned
        np.testing.assert_array_equal(message.arrays[0], np.arange(9.0))


def test_an_array_that_is_not_contiguous_arrives_whole() -> None:
    array = np.arange(12).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(read_one(joined(Message("a", {}, (array,)))).arrays[0], array)


@pytest.mark.parametrize(
    "array", [np.array([None]), np.array(["text"]), np.array([1j]), np.zeros(1, ">f4")]
)
def test_arrays_of_other_types_are_refused(array: NDArray[Any]) -> None:
    with pytest.raises(BadMessage, match="holds no array of"):
        encode(Message("a", {}, (array,)))


def test_a_message_over_the_limit_is_refused_at_both_ends() -> None:
    message = Message("a", {}, (np.zeros(1000, np.uint8),))
    with pytest.raises(BadMessage, match="over the limit of 1000"):
        encode(message, 1000)
    with pytest.raises(BadMessage, match="over the limit of 1000"):
        MessageReader(1000).feed(joined(message)[:8])


@pytest.mark.parametrize(
    "data",
    [
        PREFIX.pack(0, 0),
        PREFIX.pack(8, 0),
        PREFIX.pack(8, 8),
        PREFIX.pack(17, 8) + bytes(9),
        PREFIX.pack(16, 8) + b"nonsense",
        PREFIX.pack(16, 8) + b"\xff" * 8,
        with_header(["a", {}]),
        with_header({"a": 1, "b": 2, "c": 3}),
        with_header([1, {}, []]),
        with_header(["a", [], []]),
        with_header(["a", {}, 5]),
        with_header(["a", {}, [["<f8"]]]),
        with_header(["a", {}, [["<f8", [9]]]], bytes(64)),
        with_header(["a", {}, [["<f8", [9]]]], bytes(64)) + bytes(64),
        with_header(["a", {}, [["<f8", [7]]]], bytes(64)),
        with_header(["a", {}, [["<f8", [-1]]]], bytes(8)),
        with_header(["a", {}, [["<f8", [-1, -1]]]], bytes(8)),
        with_header(["a", {}, [["<f8", [0.5]]]], bytes(8)),
        with_header(["a", {}, [["<f8", 1]]], bytes(8)),
        with_header(["a", {}, [["<f8", [2**40, 2**40]]]], bytes(8)),
        with_header(["a", {}, [["<f8", [10**30]]]], bytes(8)),
        with_header(["a", {}, [["|O", [1]]]], bytes(8)),
        with_header(["a", {}, [[["<f8"], [1]]]], bytes(8)),
    ],
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        MessageReader().feed(data)


@given(st.binary(max_size=100), st.booleans())
def test_garbage_raises_nothing_else(garbage: bytes, has_prefix: bool) -> None:
    garbage += bytes(-len(garbage) % 8)
    prefix = PREFIX.pack(PREFIX.size + len(garbage), len(garbage) // 2) if has_prefix else b""
    try:
        MessageReader().feed(prefix + garbage)
    except BadMessage:
        pass
