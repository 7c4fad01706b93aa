"""Large bodies in JSON: the same values as any parser's, and no tree of what is refused."""

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidContent, MalformedRequest, ServeError, TooComplex
from server.json_body import BLOCK_BYTES, MOST_FIELDS, MOST_ITEMS, read_flat_object
from server.problems import TREE_BYTES, parse_json
from server.schemas import PredictBody

MIB = 2**20
KNOWN = ("text", "texts", "top_k", "image", "images", "trace")
VALUES = st.one_of(
    st.text(), st.integers(-(10**18), 10**18), st.booleans(), st.none(),
    st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip
FLAT = st.dictionaries(st.sampled_from(KNOWN), st.one_of(VALUES, st.lists(VALUES)))


@given(FLAT, st.booleans(), st.sampled_from([None, 1, "\r\n\t "]))
def test_the_values_are_those_of_any_parser(
    given: dict[str, Any], escaped: bool, indent: int | str | None
) -> None:
    body = json.dumps(given, ensure_ascii=escaped, indent=indent).encode("utf-8")
    assert read_flat_object(body, KNOWN) == given


@pytest.mark.parametrize("shift", range(14))
@pytest.mark.parametrize("piece", ["\\ud83d\\ude00", "\\n", "\\u00e9", "\\\\", "é", "\\ud83d"])
def test_no_escape_is_cut_in_two(shift: int, piece: str) -> None:
    text = "a" * shift + piece * (BLOCK_BYTES // len(piece) + 20)
    read = read_flat_object(f'{{"text":"{text}"}}'.encode(), KNOWN)
    assert read == json.loads(f'{{"text":"{text}"}}')


def test_bytes_that_mark_the_order_are_passed_over() -> None:
    assert read_flat_object(b'\xef\xbb\xbf{"top_k": 2}', KNOWN) == {"top_k": 2}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"text"}', b'{"text":}', b'{"text":"a",}', b'{"text":"a"} x', b"{,}", b"nul",
     b'{"text":"a', b'{"text":"\\', b'{"text":"\\x"}', b'{"text":"\\u12"}', b'{"text":"\\u12g4"}',
     b'{"texts":[,]}', b'{"texts":["a" "b"]}', b'{"texts":["a"', b'{"top_k":01}', b"{text:1}",
     b'{"trace":tru}', b'{"trace":NaN}', b'{"text":"\xff"}', b"\xff\xfe{\x00}\x00"],
)  # fmt: skip
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read_flat_object(body, KNOWN)


HOSTILE: dict[str, tuple[bytes, type[ServeError]]] = {
    "lists": (b'{"texts":[' + b"[]," * MIB + b"1]}", InvalidContent),
    "open lists": (b'{"texts":' + b"[" * MIB, InvalidContent),
    "only lists": (b"[" * MIB, InvalidContent),
    "objects": (b'{"text":' * MIB, InvalidContent),
    "keys": (b"{" + b",".join(b'"%x":1' % n for n in range(MIB // 8)) + b"}", InvalidContent),
    "one key": (b"{" + b'"top_k":1,' * MIB + b'"top_k":1}', TooComplex),
    "long key": (b'{"' + b"k" * MIB + b'":1}', InvalidContent),
    "numbers": (b'{"texts":[' + b"1," * MIB + b"1]}", TooComplex),
    "texts": (b'{"texts":[' + b'"",' * MIB + b'""]}', TooComplex),
    "digits": (b'{"top_k":' + b"9" * MIB + b"}", TooComplex),
    "digits in a list": (b'{"texts":[' + b"9" * MIB + b"]}", TooComplex),
    "no end": (b'{"text":"' + b"\\n" * MIB, MalformedRequest),
    "backslashes": (b'{"text":"' + b"\\" * MIB, MalformedRequest),
    "a text": (b'"' + b"a" * MIB + b'"', InvalidContent),
}


@pytest.mark.parametrize(("body", "error"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_refused_makes_no_tree(body: bytes, error: type[ServeError]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(error) as refused:
            parse_json(PredictBody, body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * MIB and len(refused.value.detail) < 200


def test_as_much_as_the_bounds_is_taken() -> None:
    texts = ["a"] * MOST_ITEMS
    assert read_flat_object(json.dumps({"texts": texts}).encode(), KNOWN) == {"texts": texts}
    fields = b",".join([b'"top_k":1'] * MOST_FIELDS)
    assert read_flat_object(b"{" + fields + b"}", KNOWN) == {"top_k": 1}


@pytest.mark.parametrize("size", [10, 2 * TREE_BYTES], ids=["small", "large"])
@pytest.mark.parametrize(
    "half", [b"\\ud83d", b"\\ude00", b"\xed\xa0\xbd"], ids=["first", "second", "bytes"]
)
def test_half_a_character_is_its_own_texts_matter(size: int, half: bytes) -> None:
    whole = b"a" * size
    body = b'{"texts":["%s","half %s emoji"],"top_k":1}' % (whole, half)
    parsed = parse_json(PredictBody, body)
    (first, second), is_list = parsed.items
    assert is_list and first.encode() == whole and parsed.top_k == 1
    assert second.encode("utf-8", "surrogatepass") == json.loads(
        b'"half %s emoji"' % half.replace(b"\xed\xa0\xbd", b"\\ud83d")
    ).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("pad", [lambda b: b, lambda b: b + b" " * 2 * TREE_BYTES])
def test_small_and_large_bodies_get_the_same_sentence(pad: Callable[[bytes], bytes]) -> None:
    with pytest.raises(InvalidContent, match="unknown field 'txt'; did you mean 'text'"):
        parse_json(PredictBody, pad(b'{"txt": "a"}'))
    with pytest.raises(InvalidContent, match="top_k"):
        parse_json(PredictBody, pad(b'{"text": "a", "top_k": "3"}'))


@pytest.mark.parametrize("body", [b"[", b'["a"', b'{"unknown": 1', b"[" * 9000, b'{"text": [['])
def test_a_body_that_is_not_json_is_malformed_whatever_else_is_wrong(body: bytes) -> None:
    with pytest.raises(MalformedRequest, match="is not JSON"):
        parse_json(PredictBody, body)


@pytest.mark.parametrize("body", [b"[]", b'["\\ud800"]', b'{"unknown": "\\ud800"}'])
def test_json_of_another_shape_is_not_malformed(body: bytes) -> None:
    with pytest.raises(InvalidContent):
        parse_json(PredictBody, body)


@pytest.mark.parametrize("pad", [b"", b" " * 2 * TREE_BYTES], ids=["small", "large"])
@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_other_unicode_is_refused_in_one_sentence(encoding: str, pad: bytes) -> None:
    body = ('{"text": "Oil"}' + pad.decode()).encode(encoding)
    with pytest.raises(MalformedRequest) as refused:
        parse_json(PredictBody, body)
    assert refused.value.detail == "the body is in UTF-16 or UTF-32; send JSON in UTF-8"


@pytest.mark.parametrize("pad", [b"", b" " * 2 * TREE_BYTES], ids=["small", "large"])
def test_bytes_that_are_not_utf_8_are_refused_in_one_sentence(pad: bytes) -> None:
    with pytest.raises(MalformedRequest, match="the body is not UTF-8; send UTF-8"):
        parse_json(PredictBody, '{"text": "\u00e9"}'.encode("latin-1") + pad)
