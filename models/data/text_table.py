"""Read datasets of labelled texts from CSV, TSV and JSON Lines files."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.data.samples import Samples, index_labels

SUFFIXES = (".csv", ".tsv", ".jsonl")
TEST_TABLES = ("test", "validation")  # the first that exists is the test set
MAX_NAME_CHARACTERS = 30  # of a column in a message


class Columns(NamedTuple):
    """Columns of texts and labels: names or, in a file without a header, "0", "1", ..."""

    text: str
    label: str


class _TextRow(NamedTuple):
    line: int  # the first is 1
    text: str
    label: str


def is_text_folder(folder: Path) -> bool:
    """Return whether a folder holds a table of training texts."""
    return bool(_tables(folder, "train"))


def read_texts(path: Path, columns: Columns) -> Samples:
    """Read one table, or the tables `train` and `test` of a folder.

    If there is no `test` table, `validation` is the test set. A `.csv` may quote fields as
    spreadsheets do. A `.tsv` has no quotes: a line is a row and a tab ends a column. Empty lines
    are ignored. Labels are strings or integers.

    Args:
        path: A `.csv`, `.tsv` or `.jsonl` file, or a folder.
        columns: Columns of the texts and labels.

    Raises:
        ValueError: If a file lacks a column, has no rows or an invalid line, or the classes of
            training and test differ.
    """
    files = [_table(path, "train"), _test_table(path)] if path.is_dir() else [path]
    parts = [_read_table(file, columns) for file in files]
    _check_no_header(files[0], parts[0], columns)
    rows = [row for part in parts for row in part]
    is_test = np.arange(len(rows)) >= len(parts[0]) if len(parts) > 1 else None
    classes, labels = index_labels([row.label for row in rows], is_test, str(path))
    return Samples(classes, [row.text for row in rows], labels, is_test)


def _tables(folder: Path, name: str) -> list[Path]:
    return [file for suffix in SUFFIXES if (file := folder / f"{name}{suffix}").is_file()]


def _table(folder: Path, name: str) -> Path:
    table, *others = _tables(folder, name)
    if others:
        raise ValueError(f"{folder} holds both {table.name} and {others[0].name}; remove one")
    return table


def _test_table(folder: Path) -> Path:
    for name in TEST_TABLES:
        if _tables(folder, name):
            return _table(folder, name)
    train = _table(folder, "train")
    raise ValueError(
        f"{folder} holds {train.name} but no table {' or '.join(TEST_TABLES)}; add one, or give "
        f"{train} to hold out a tenth of it as the test set"
    )


def _read_table(path: Path, columns: Columns) -> list[_TextRow]:
    content = _decode(path)
    match path.suffix.lower():
        case ".csv":
            rows = list(_select_columns(_split_csv(path, content), columns, path))
        case ".tsv":
            rows = list(_select_columns(_split_tsv(content), columns, path))
        case _:
            rows = list(_read_objects(path, content, columns))
    if not rows:
        raise ValueError(f"{path} holds no texts; give a file with a text and a label per row")
    for row in rows:
        for kind, value in (("text", row.text), ("label", row.label)):
            if not value.strip():
                raise ValueError(f"line {row.line} of {path} has an empty {kind}; remove the row")
    return rows


def _decode(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")  # files of spreadsheets begin with a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} of {path} is not UTF-8; save the file as UTF-8") from error


def _split_csv(path: Path, content: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of every row; a quoted text may span several lines."""
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))  # texts may be long
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"the row that begins in line {line} of {path} is not valid CSV ({error}); double the "
            f"quotes inside a quoted text"
        ) from error


def _split_tsv(content: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of every row."""
    for line, row in enumerate(content.split("\n"), 1):
        if row.strip():
            yield line, row.removesuffix("\r").split("\t")


def _select_columns(
    records: Iterator[tuple[int, list[str]]], columns: Columns, path: Path
) -> Iterator[_TextRow]:
    """Yield text and label of every row, found by the header's names or by column number."""
    line, first = next(records, (1, []))
    if not first:
        return
    names = [name.strip() for name in first]
    has_header = set(columns) <= set(names)
    if not has_header:
        names = [str(number) for number in range(len(first))]
    if not set(columns) <= set(names):
        raise ValueError(
            f"{_missing_columns(path, line, first, columns)}, or give their numbers from 0 on if "
            f"the file has no header"
        )
    text, label = names.index(columns.text), names.index(columns.label)
    if not has_header:
        yield _TextRow(line, first[text], first[label].strip())
    for line, fields in records:
        if len(fields) != len(first):
            raise ValueError(
                f"line {line} of {path} has {len(fields)} columns, but the first row has "
                f"{len(first)}; quote texts with commas in a .csv, and remove tabs from texts in a "
                f".tsv"
            )
        yield _TextRow(line, fields[text], fields[label].strip())


def _read_objects(path: Path, content: str, columns: Columns) -> Iterator[_TextRow]:
    for line, encoded in enumerate(content.split("\n"), 1):
        if not encoded.strip():
            continue
        try:
            values = json.loads(encoded)
        except ValueError as error:
            raise ValueError(f"line {line} of {path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"line {line} of {path} is not a JSON object; each line must be one")
        if not set(columns) <= values.keys():
            raise ValueError(_missing_columns(path, line, list(values), columns))
        text, label = values[columns.text], values[columns.label]
        if not isinstance(text, str):
            raise ValueError(f"line {line} of {path} has the text {text!r}; it must be a string")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(
                f"line {line} of {path} holds half of a surrogate pair; write valid Unicode"
            )
        if not isinstance(label, str | int):
            raise ValueError(
                f"line {line} of {path} has the label {label!r}; it must be a string or an integer"
            )
        yield _TextRow(line, text, label.strip() if isinstance(label, str) else json.dumps(label))


def _missing_columns(path: Path, line: int, found: Sequence[str], columns: Columns) -> str:
    names = ", ".join(
        repr(name if len(name) <= MAX_NAME_CHARACTERS else f"{name[:MAX_NAME_CHARACTERS]}...")
        for name in found
    )
    return (
        f"line {line} of {path} has the columns {names}, not {columns.text!r} and "
        f"{columns.label!r}; name the right ones with --text-column and --label-column"
    )


def _check_no_header(path: Path, rows: Sequence[_TextRow], columns: Columns) -> None:
    # If columns are given by number, a header would be read as a row, and its label as a class.
    line, _, label = rows[0]
    is_numbered = line == 1 and columns.label.isdecimal()
    if is_numbered and len(rows) > 1 and sum(row.label == label for row in rows) == 1:
        raise ValueError(
            f"line 1 of {path} has the label {label!r}, which no other line has; if it is a "
            f"header, name its columns with --text-column and --label-column"
        )
