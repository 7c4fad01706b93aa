from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.keys import KeyFile, KeySet, digest_of, read_keys


def line_of(key: str, name: str = "") -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()} {name}"


def bearer(key: str) -> bytes:
    found = digest_of(f"Bearer {key}".encode())
    assert found is not None
    return found


def test_a_file_has_a_line_for_each_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# all keys\n\n{line_of('one')}\n  {line_of('two', 'Ann # phone')}\n")
    keys = read_keys(path)
    assert [bearer(key) in keys for key in ("one", "two", "three")] == [True, True, False]
    assert bearer("one") in keys, "also when it is shown again"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("my-secret-key\n", "line 1 of .* is not sha256: and 64 hexadecimal digits"),
        ("\nsha256:abcd secret\n", "line 2 of"),
        (f"sha256:{'g' * 64}", "line 1 of"),
        (f"sha256:{'a' * 65}", "line 1 of"),
        (f"{line_of('one')}\nsecret", "line 2 of"),
        ("", "holds no key"),
        ("# none\n", "holds no key"),
        (None, "cannot be read: No such file"),
        (b"\xff\xfe", "cannot be read: it is no text"),
    ],
)
def test_a_bad_file_is_one_sentence_that_shows_no_key(
    tmp_path: Path, text: str | bytes | None, sentence: str
) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=sentence) as told:
        read_keys(path)
    assert "secret" not in str(told.value) and "\n" not in str(told.value)
    assert str(path) in str(told.value)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (b"Bearer abc", b"abc"),
        (b"bearer   abc ", b"abc"),
        (b"BEARER abc", b"abc"),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"Bearer a b", None),
        (b"Basic abc", None),
        (b"abc", None),
        (b"", None),
    ],
)
def test_a_key_comes_as_bearer(header: bytes, key: bytes | None) -> None:
    assert digest_of(header) == (None if key is None else hashlib.sha256(key).digest())


@given(
    st.sets(st.binary(min_size=32, max_size=32), max_size=5), st.binary(min_size=32, max_size=32)
)
def test_a_set_holds_its_digests_alone(digests: set[bytes], other: bytes) -> None:
    keys = KeySet(digests)
    for _ in range(2):
        assert all(each in keys for each in digests)
        assert (other in keys) == (other in digests)


def put(path: Path, text: str) -> None:
    """Replace a file as editors and mounted secrets do."""
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)


def test_a_file_that_changes_is_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    put(path, line_of("one"))
    file = KeyFile(path)
    assert not file.refresh()
    with caplog.at_level("INFO"):
        put(path, line_of("two", "Ann"))
        assert file.refresh() and not file.refresh()
    assert bearer("two") in file.keys and bearer("one") not in file.keys
    assert f"{path}: 1 keys added, 1 removed" in caplog.text
    put(path, f"# a comment\n{line_of('two')}")
    assert not file.refresh(), "the keys are the same"


@pytest.mark.parametrize("text", ["", "half a lin", None])
def test_a_change_that_cannot_be_read_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    path = tmp_path / "keys"
    put(path, line_of("one"))
    file = KeyFile(path)
    if text is None:
        path.unlink()
    else:
        put(path, text)
    assert not file.refresh() and not file.refresh()
    assert bearer("one") in file.keys
    (told,) = [each.getMessage() for each in caplog.records]
    assert told.endswith("the keys of before stay in force") and "half" not in told
    put(path, line_of("two"))
    assert file.refresh() and bearer("two") in file.keys
