"""The key that commands send: one key from a file or the environment, and never in a message."""

from pathlib import Path

import pytest

from server.client_key import VARIABLE, advice, key_headers, read_key
from server.settings import load_settings


def test_the_file_goes_before_the_environment(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" abc123\n")
    assert read_key(tmp_path / "key", {VARIABLE: "other"}) == "abc123"
    assert read_key(None, {VARIABLE: "other\n"}) == "other"
    assert read_key(None, {}) is None
    assert key_headers("abc123") == (("Authorization", "Bearer abc123"),)
    assert key_headers(None) == ()


@pytest.mark.parametrize("held", ["", " \n", "secret1 secret2", "secret1\nsecret2", "secr\xe9t1"])
def test_anything_but_one_key_is_one_sentence_without_it(tmp_path: Path, held: str) -> None:
    path = tmp_path / "key"
    path.write_text(held, "utf-8")
    with pytest.raises(ValueError, match="does not hold one key") as told:
        read_key(path, {})
    assert "secr" not in str(told.value) and str(path) in str(told.value)
    with pytest.raises(ValueError, match="EENET_KEY does not hold one key"):
        read_key(None, {VARIABLE: held})


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for bad in (tmp_path / "none", tmp_path):
        with pytest.raises(ValueError, match=r"--key-file .* cannot be read"):
            read_key(bad, {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be read"):
        read_key(tmp_path / "binary", {})


def test_refusals_alone_have_advice() -> None:
    assert "--key-file FILE" in advice(401) and "group" in advice(403)
    assert advice(404) == ""


def test_a_server_starts_where_a_key_is_set() -> None:
    load_settings({}, None, {VARIABLE: "abc123"})
