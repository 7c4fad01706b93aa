"""Nested bodies: the same values as any parser's, arrays of long lists, and bounds."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidContent, MalformedRequest, ServeError, TooComplex
from server.json_body import BLOCK_BYTES
from server.nested_json import MOST_DEPTH, TREE_BYTES, read_object

MIB = 2**20
PAD = " " * (TREE_BYTES + 1)  # makes any body a large one
PLAIN = st.one_of(st.text(), st.booleans(), st.none())  # numbers in lists become arrays
NESTED = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=15), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=15), NESTED, max_size=5), st.booleans())
def test_the_values_are_those_of_any_parser(given: dict[str, Any], large: bool) -> None:
    body = json.dumps(given) + PAD * large
    assert read_object(body.encode()) == given


@pytest.mark.parametrize("count", [30, 1000, 5 * BLOCK_BYTES // 7])
@pytest.mark.parametrize("separator", [",", ", ", " ,\n  "])
def test_a_long_list_of_numbers_becomes_an_array(count: int, separator: str) -> None:
    values = np.random.default_rng(0).normal(size=count).astype(np.float32)
    data = separator.join(map(str, values.tolist()))
    read = read_object(f'{{"data": [{data}], "after": 1}}{PAD}'.encode())
    assert isinstance(read["data"], np.ndarray) and read["after"] == 1
    assert np.array_equal(read["data"], values)


def test_a_shape_stays_a_list_of_exact_integers() -> None:
    body = '{"shape": [16777217, 9007199254740993, 3]}' + PAD
    assert read_object(body.encode()) == {"shape": [16777217, 9007199254740993, 3]}


def test_half_a_character_stays_in_its_own_text() -> None:
    assert read_object(rb'{"inputs": ["\ud83d", "b"]}') == {"inputs": ["\ud83d", "b"]}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", MalformedRequest),
        ("[1]", InvalidContent),
        ('{"a": NaN}', MalformedRequest),
        ('{"a": [1,2}', MalformedRequest),
        ('{"a": [1,2,]}', MalformedRequest),
        ('{"a": {"b": 1}', MalformedRequest),
        ('{"a": "b"} x', MalformedRequest),
        (f'{{"a": [{"1," * 100}]}}', MalformedRequest),
        (f'{{"a": [{"1," * 100}NaN]}}', MalformedRequest),
        (f'{{"a": [{"1," * 100 * 1000} ]}}', MalformedRequest),
        (f'{{"a": {"[" * (MOST_DEPTH + 2)}1{"]" * (MOST_DEPTH + 2)}}}', TooComplex),
    ],
)
def test_what_is_not_read(text: str, kind: type[ServeError]) -> None:
    with pytest.raises(kind):
        read_object(f"{text}{PAD}".encode())


@pytest.mark.parametrize(
    "item", ["true", '"a"', "null", "1e39", "1" + "0" * 400, "-1e300"], ids=lambda each: each[:5]
)
def test_a_list_of_numbers_holds_numbers_that_float32_holds(item: str) -> None:
    with pytest.raises(InvalidContent, match=r"mixes numbers|beyond float32"):
        read_object(f'{{"data": [{"0.5," * 100}{item}]}}{PAD}'.encode())


HOSTILE = {
    "lists": b'{"a":[' + b"[]," * MIB + b"1]}",
    "open lists": b'{"a":' + b"[" * MIB,
    "open objects": b'{"a":' * MIB,
    "small lists": b'{"a":[' + b"[1.5]," * MIB + b"1]}",
    "objects": b'{"a":[' + b'{"b":1},' * MIB + b"1]}",
    "texts": b'{"a":[' + b'"",' * MIB + b"1]}",
    "keys": b"{" + b'"a":1,' * MIB + b'"b":2}',
    "a name": b'{"' + b"a" * MIB + b'":1}',
    "no comma": b'{"a":[1' + b" " * MIB + b"1]}",
    "digits": b'{"a":[' + b"1" * MIB + b"]}",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.slow
def test_hostile_bodies_are_refused_without_a_tree_of_them(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ServeError):
            read_object(HOSTILE[name])
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()
