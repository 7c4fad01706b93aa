"""Files in base64: as encoders write it, in steps, and refused where it is none."""

from __future__ import annotations

import base64
import random
import textwrap

import pytest

from server.base64_file import BLOCK, decode_base64
from server.errors import InvalidContent

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
        ("A" * (2 * BLOCK) + "-_", "not base64"),
        ("data:image/png,AAAA", "data: URL without base64"),
        ("https://example.com/ship.jpg", "URLs are not fetched"),
    ],
)
def test_what_is_none_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidContent, match=reason):
        decode_base64(text)
