"""UTF-8 in steps is UTF-8 at once."""

from __future__ import annotations

import pytest

from server.utf8 import BLOCK_BYTES, decode_utf8


@pytest.mark.parametrize("character", ["a", "ä", "€", "😀", "\ud800"])
def test_no_character_is_cut_in_two(character: str) -> None:
    for shift in range(4):
        text = "x" * shift + character * (BLOCK_BYTES // 2)
        raw = text.encode("utf-8", "surrogatepass")
        assert decode_utf8(b"ab" + raw + b"c", 2, 2 + len(raw), "surrogatepass") == text


@pytest.mark.parametrize("bad", [b"\xff", b"\x80" * 9, b"\xe2\x82", b"\xed\xa0\x80"])
@pytest.mark.parametrize("before", [0, BLOCK_BYTES - 1, BLOCK_BYTES])
def test_what_is_none_is_found(bad: bytes, before: int) -> None:
    with pytest.raises(UnicodeDecodeError):
        decode_utf8(b"a" * before + bad + b"a" * BLOCK_BYTES)
