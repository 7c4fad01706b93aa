import base64
import random
import re
import textwrap
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.base64_image import BLOCK, decode_base64
from server.errors import InvalidContent

SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "lines": lambda text: "\n".join(re.findall(".{1,76}", text)),
    "crlf": lambda text: "\r\n".join(re.findall(".{1,64}", text)) + "\r\n",
    "indented": lambda text: "\n\t  ".join(re.findall(".{1,30}", f" {text}")),
    "unpadded": lambda text: text.rstrip("="),
    "of URLs": lambda text: text.translate(str.maketrans("+/", "-_")),
    "of URLs, unpadded": lambda text: text.translate(str.maketrans("+/", "-_")).rstrip("="),
    "data": lambda text: f"data:image/jpeg;base64,{text}",
    "data, bare": lambda text: f"data:;base64,{text}",
    "data, capitals": lambda text: f"DATA:image/JPEG;BASE64,{text}",
    "data, parameters": lambda text: f"data:image/png;name=a.png;charset=utf-8;base64,{text}\n",
    "data, indented": lambda text: f"\n  data:image/png;base64,\n{text}",
    "data, escaped": lambda text: f"data:image/png;base64,{text}".replace("+", "%2B").replace(
        "=", "%3d"
    ),
}


@pytest.mark.parametrize("way", SPELLINGS)
@given(data=st.binary(min_size=1, max_size=200))
def test_every_spelling_is_read(way: str, data: bytes) -> None:
    assert decode_base64(SPELLINGS[way](base64.b64encode(data).decode())) == data


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("https://example.com/a.jpg", "URLs are not fetched"),
        (" FTP://example.com/a.jpg", "URLs are not fetched"),
        ("s3://bucket/a.jpg", "URLs are not fetched"),
        ("file:///etc/passwd", "URLs are not fetched"),
        ("data:image/svg+xml,%3Csvg/%3E", "a data: URL without base64"),
        ("data:image/png;base64", "a data: URL without base64"),
        ("data:image/png,;base64,aGk=", "a data: URL without base64"),
        ("a", "not base64"),
        ("aG=k", "not base64"),
        ("!!!", "not base64"),
        ("aGk=\u00e9", "not base64"),
        ("\ud83d", "not base64"),
        ("data:;base64,aG%6B", "not base64"),
    ],
)
def test_what_is_none_is_named(text: str, sentence: str) -> None:
    with pytest.raises(InvalidContent, match=sentence):
        decode_base64(text)


@pytest.mark.parametrize("unit", ["a ", "% ", "-", "\n", "=", "%2B"])
def test_a_long_one_takes_no_time(unit: str) -> None:
    text, started = "data:;base64," + unit * (4_000_000 // len(unit)), time.perf_counter()
    try:
        decode_base64(text)
    except InvalidContent:
        pass
    assert time.perf_counter() - started < 1


FILES = [random.Random(0).randbytes(size) for size in (0, 1, 2, 3, 100, BLOCK, 2 * BLOCK + 1)]


@pytest.mark.parametrize("file", FILES, ids=len)
def test_every_spelling_is_the_same_file(file: bytes) -> None:
    plain = base64.b64encode(file).decode()
    spellings = [
        plain,
        plain.rstrip("="),
        plain + "\n",
        f"data:image/png;base64,{plain}",
        f"DATA:image/png;charset=x;BASE64,{plain.rstrip('=')}",
        "\r\n".join(textwrap.wrap(plain, 76)) + "\r\n",
        "\n".join(textwrap.wrap(plain, 61)) + " " * (BLOCK + 3),
        plain + "=" * (BLOCK + 1),
    ]
    for text in spellings:
        assert decode_base64(text) == file


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("!!!!", "not base64"),
        ("AAAAA", "not base64"),
        ("ä" * 8, "not base64"),
        ("QQ==QQ==", "not base64"),
        ("A" * (BLOCK - 2) + "==" + "A" * BLOCK, "not base64"),
        ("A" * BLOCK + "====" + "A" * BLOCK, "not base64"),
        ("data:image/png,AAAA", "data: URL without base64"),
        ("https://example.com/ship.jpg", "URLs are not fetched"),
    ],
)
def test_what_is_none_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidContent, match=reason):
        decode_base64(text)
