"""Read the files of tables: their kind by suffix, gzip, and the encoding of their text."""

import gzip
import zlib
from pathlib import Path

from models.file_kinds import is_lfs_pointer

KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
SUFFIXES = (*KINDS, ".csv.gz", ".tsv.gz", ".jsonl.gz", ".json.gz")
# Longer marks first: that of UTF-32 begins as that of UTF-16 does.
BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


def kind_of_table(path: Path) -> str | None:
    """Return `csv`, `tsv`, `json` or `parquet` by the file's suffix; None if it is no table."""
    name = path.name.lower().removesuffix(".gz")
    kind = KINDS.get(Path(name).suffix)
    is_packed_parquet = kind == "parquet" and path.name.lower().endswith(".gz")
    return None if is_packed_parquet else kind


def stem_of_table(path: Path) -> str:
    """Return the file's name without the suffixes of its kind and of gzip."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    return Path(name).stem


def read_table_file(path: Path) -> bytes:
    """Read a file, unpacked.

    Raises:
        ValueError: If its gzip is damaged, or it is a pointer of Git LFS.
    """
    data = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is no whole gzip file ({error}); copy it again") from error
    if is_lfs_pointer(data):
        raise ValueError(
            f"{path} is a Git LFS pointer, not the table itself; run `git lfs pull` in its folder"
        )
    return data


def decode_table(path: Path, data: bytes) -> str:
    """Decode UTF-8, or UTF-16 and UTF-32 with a byte order mark, as spreadsheets write it.

    Raises:
        ValueError: If the bytes are none of them.
    """
    encoding = next(
        (encoding for mark, encoding in BYTE_ORDER_MARKS.items() if data.startswith(mark)),
        "utf-8-sig",
    )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} of {path} is not UTF-8; save the file as UTF-8") from error
