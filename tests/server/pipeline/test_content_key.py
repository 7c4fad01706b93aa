import os
from pathlib import Path

import pytest

from server.pipeline import content_key as keys
from server.pipeline.content_key import content_key, hash_of


def test_a_key_depends_on_every_part_and_not_on_their_order() -> None:
    assert content_key(a=1, b={"x": "y"}) == content_key(b={"x": "y"}, a=1)
    assert content_key(a=1) != content_key(a=2) != content_key(b=2)


def test_a_folder_is_hashed_by_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in/a.txt"
    file.write_text("one")
    first = hash_of(tmp_path)
    os.utime(file, (0, 0))
    assert hash_of(tmp_path) == first
    file.write_text("two")
    assert hash_of(tmp_path) != first
    file.write_text("one")
    assert hash_of(tmp_path) == first
    file.rename(tmp_path / "in/b.txt")
    assert hash_of(tmp_path) != first
    assert hash_of(tmp_path / "in/b.txt") != hash_of(tmp_path / "in")


def test_large_folders_are_hashed_by_sizes_and_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "LARGE", 2)
    (tmp_path / "a").write_text("one")
    first = hash_of(tmp_path)
    os.utime(tmp_path / "a", (0, 0))
    assert hash_of(tmp_path) != first
