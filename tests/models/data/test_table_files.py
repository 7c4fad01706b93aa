import gzip
from pathlib import Path

import pytest

from models.data.table_files import decode_table, kind_of_table, read_table_file, stem_of_table


@pytest.mark.parametrize(
    ("name", "kind", "stem"),
    [
        ("train.csv", "csv", "train"),
        ("Train.CSV.GZ", "csv", "Train"),
        ("a.tsv", "tsv", "a"),
        ("a.jsonl.gz", "json", "a"),
        ("a.ndjson", "json", "a"),
        ("a.json", "json", "a"),
        ("a.parquet", "parquet", "a"),
        ("a.parquet.gz", None, "a"),
        ("a.txt", None, "a"),
    ],
)
def test_the_suffix_tells_the_kind(name: str, kind: str | None, stem: str) -> None:
    assert (kind_of_table(Path(name)), stem_of_table(Path(name))) == (kind, stem)


def test_gzip_is_unpacked_and_damage_told(tmp_path: Path) -> None:
    path = tmp_path / "d.csv.gz"
    path.write_bytes(gzip.compress(b"text,label\n"))
    assert read_table_file(path) == b"text,label\n"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"d\.csv\.gz is no whole gzip file .*; copy it again"):
        read_table_file(path)
    path.write_bytes(b"text,label\n")
    with pytest.raises(ValueError, match=r"d\.csv\.gz is no whole gzip file"):
        read_table_file(path)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=r"d\.csv is a Git LFS pointer.*git lfs pull"):
        read_table_file(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_tell_the_encoding(encoding: str) -> None:
    assert decode_table(Path("d"), "Käse,1\n".encode(encoding)) == "Käse,1\n"


def test_big_endian_marks_are_read_too() -> None:
    assert decode_table(Path("d"), b"\xfe\xff" + "é".encode("utf-16-be")) == "é"
