"""Read datasets of labelled texts from CSV, TSV, JSON and Parquet files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.data.delimited import FieldRow, split_csv, split_tsv
from models.data.label_sets import index_label_sets, split_labels
from models.data.objects import NamedRow, plain_label, read_json, read_parquet
from models.data.samples import Samples, index_labels
from models.data.split_names import TEST_NAMES, TRAIN_NAMES, find_split
from models.data.table_files import (
    decode_table,
    kind_of_table,
    read_table_file,
    stem_of_table,
)
from models.preprocess import Text

MAX_NAME_CHARACTERS = 30  # of a column in a message
MAX_LISTED_ROWS = 5


@dataclass(frozen=True)
class Columns:
    """Columns of texts and labels: names or, in a file without a header, "0", "1", ...

    Attributes:
        text: One column; two with a comma between them, read as a pair; or several with a plus
            between them, joined into one text.
        label: One column; or several with commas between them, one per class, each holding 0 or 1.
        separator: What separates the labels of a row that may have several; None: one label a row.
    """

    text: str
    label: str
    separator: str | None = None

    @property
    def pair(self) -> tuple[str, ...]:
        """The parts of a text that stay separate: one or two groups of columns."""
        return tuple(self.text.split(","))

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns of labels."""
        return tuple(self.label.split(","))

    @property
    def wanted(self) -> tuple[str, ...]:
        """All columns that are read."""
        texts = [name for part in self.pair for name in part.split("+")]
        return (*texts, *self.labels)

    def __post_init__(self) -> None:
        if len(self.pair) > 2:
            raise ValueError(
                f"--text-column {self.text} names {len(self.pair)} columns; a pair has two, and a "
                f"plus joins columns into one text: title+body"
            )


class _TextRow(NamedTuple):
    place: str  # as in "line 3"
    text: Text
    label: Any


class _Table(NamedTuple):
    rows: list[_TextRow]
    notes: list[str]


def is_text_folder(folder: Path) -> bool:
    """Return whether a folder holds a table of training texts."""
    return bool(_tables(folder, TRAIN_NAMES))


def read_texts(path: Path, columns: Columns, *, skip_damaged: bool = False) -> Samples:
    """Read one table, or the tables `train` and `test` of a folder, in any case.

    If there is no `test` table, `val`, `validation`, `valid` or `dev` is the test set. A `.csv` may
    quote fields as spreadsheets do, and have any usual delimiter. A `.tsv` has no quotes: a line is
    a row and a tab ends a column. Rows without any value are passed over.

    Args:
        path: A table, also packed by gzip, or a folder.
        columns: Columns of the texts and labels.
        skip_damaged: Pass over rows that lack the text or the label.

    Raises:
        ValueError: If a file lacks a column, has no rows or an invalid line, or the classes of
            training and test differ.
    """
    parts = [[path]] if path.is_file() else [_tables(path, TRAIN_NAMES), _test_tables(path)]
    tables = [
        _join([_read_table(file, columns, skip_damaged) for file in files]) for files in parts
    ]
    _check_no_header(parts[0][0], tables[0].rows, columns)
    rows = [row for table in tables for row in table.rows]
    is_test = np.arange(len(rows)) >= len(tables[0].rows) if len(tables) > 1 else None
    notes = tuple(note for table in tables for note in table.notes)
    if path.is_dir():
        notes += _other_tables(path, [file for files in parts for file in files])
    texts, labels = [row.text for row in rows], [row.label for row in rows]
    if not isinstance(labels[0], str):
        classes, sets = index_label_sets(labels, is_test, str(path))
        return Samples(classes, texts, sets, is_test, notes)
    indexed = index_labels(labels, is_test, str(path))
    return Samples(indexed.classes, texts, indexed.labels, is_test, notes + indexed.notes)


def _tables(folder: Path, wanted: Sequence[str]) -> list[Path]:
    """Return the table of the first wanted split, or its shards.

    Raises:
        ValueError: If there are two tables of that split.
    """
    files = [file for file in folder.iterdir() if file.is_file() and kind_of_table(file)]
    stems = set(find_split(wanted, {stem_of_table(file) for file in files}))
    found = sorted(file for file in files if stem_of_table(file) in stems)
    are_shards = all("-of-" in file.name for file in found)
    if len(found) > 1 and not are_shards:
        raise ValueError(f"{folder} holds both {found[0].name} and {found[1].name}; remove one")
    return found


def _test_tables(folder: Path) -> list[Path]:
    if found := _tables(folder, TEST_NAMES):
        return found
    train, *_ = _tables(folder, TRAIN_NAMES)
    raise ValueError(
        f"{folder} holds {train.name} but no table {', '.join(TEST_NAMES)}; add one, or give "
        f"{train} to hold out a tenth of it as the test set"
    )


def _other_tables(folder: Path, used: Sequence[Path]) -> tuple[str, ...]:
    others = sorted(
        file.name for file in folder.iterdir() if kind_of_table(file) and file not in used
    )
    return (f"passed over other tables of {folder}: {', '.join(others)}",) if others else ()


def _join(tables: Sequence[_Table]) -> _Table:
    return _Table(
        [row for table in tables for row in table.rows],
        [note for table in tables for note in table.notes],
    )


def _read_table(path: Path, columns: Columns, skip_damaged: bool) -> _Table:
    rows, blank, lacking = [], [], []
    for row in _rows(path, columns):
        if _is_blank(row):
            blank.append(row.place)
        elif missing := _missing_part(row, columns):
            lacking.append((row.place, missing))
        else:
            rows.append(row)
    notes = []
    if blank:
        notes.append(f"passed over rows of {path} without any value: {_format_places(blank)}")
    if lacking and skip_damaged:
        places = _format_places([place for place, _ in lacking])
        notes.append(f"passed over rows of {path} without text or label: {places}")
    elif lacking:
        more = f" ({len(lacking)} such rows in all)" if len(lacking) > 1 else ""
        raise ValueError(
            f"{lacking[0][0]} of {path} has an empty {lacking[0][1]}; remove the row{more}, or "
            f"pass over it with --skip-damaged"
        )
    if not rows:
        raise ValueError(f"{path} holds no texts; give a file with a text and a label per row")
    return _Table(rows, notes)


def _format_places(places: Sequence[str]) -> str:
    more = f" and {len(places) - MAX_LISTED_ROWS} more" if len(places) > MAX_LISTED_ROWS else ""
    return f"{len(places)} ({', '.join(places[:MAX_LISTED_ROWS])}{more})"


def _is_blank(row: _TextRow) -> bool:
    parts = (row.text,) if isinstance(row.text, str) else row.text
    has_label = bool(row.label) if isinstance(row.label, str) else any(row.label.values())
    return not has_label and not any(part.strip() for part in parts)


def _missing_part(row: _TextRow, columns: Columns) -> str | None:
    parts = (row.text,) if isinstance(row.text, str) else row.text
    if not all(part.strip() for part in parts):
        return "text"
    return "label" if row.label == "" else None  # a row of several labels may have none


def _rows(path: Path, columns: Columns) -> Iterator[_TextRow]:
    data, kind = read_table_file(path), kind_of_table(path)
    if kind == "parquet":
        return _select_values(read_parquet(path, data, columns.wanted), columns, path)
    content = decode_table(path, data)
    if kind == "json":
        return _select_values(read_json(path, content, columns.wanted), columns, path)
    rows = split_tsv(content) if kind == "tsv" else split_csv(path, content, columns.wanted)
    return _select_columns(rows, columns, path)


def _select_columns(
    records: Iterator[FieldRow], columns: Columns, path: Path
) -> Iterator[_TextRow]:
    """Yield text and label of every row, found by the header's names or by column number."""
    line, first = next(records, (1, []))
    if not first:
        return
    names, wanted = [name.strip() for name in first], set(columns.wanted)
    has_header = wanted <= set(names)
    if not has_header:
        names = [str(number) for number in range(len(first))]
    if not wanted <= set(names):
        raise ValueError(
            f"{_missing_columns(path, f'line {line}', first, columns)}, or give their numbers from "
            f"0 on if the file has no header"
        )
    places = {name: names.index(name) for name in columns.wanted}
    if not has_header:
        yield _text_row(path, f"line {line}", {n: first[i] for n, i in places.items()}, columns)
    for line, fields in records:
        if len(fields) != len(first) and any(field.strip() for field in fields):
            raise ValueError(
                f"line {line} of {path} has {len(fields)} columns, but the first row has "
                f"{len(first)}; quote texts with commas in a .csv, and remove tabs from texts in a "
                f".tsv"
            )
        values = {n: fields[i] if i < len(fields) else "" for n, i in places.items()}
        yield _text_row(path, f"line {line}", values, columns)


def _select_values(records: Iterator[NamedRow], columns: Columns, path: Path) -> Iterator[_TextRow]:
    for place, values in records:
        if not set(columns.wanted) <= values.keys():
            raise ValueError(_missing_columns(path, place, list(values), columns))
        yield _text_row(path, place, values, columns)


def _text_row(path: Path, place: str, values: dict[str, Any], columns: Columns) -> _TextRow:
    parts = [
        " ".join(_checked_text(path, place, values[name]) for name in part.split("+"))
        for part in columns.pair
    ]
    text: Text = parts[0] if len(parts) == 1 else (parts[0], parts[1])
    return _TextRow(place, text, _label_of(path, place, values, columns))


def _checked_text(path: Path, place: str, text: Any) -> str:
    if text is None or text != text:  # an absent value, null or NaN
        return ""
    if not isinstance(text, str):
        raise ValueError(f"{place} of {path} has the text {text!r}; it must be a string")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{place} of {path} holds half of a surrogate pair; write valid Unicode")
    return text


def _label_of(path: Path, place: str, values: dict[str, Any], columns: Columns) -> Any:
    """Return one label as text; several as a table that says which of the classes are set."""
    if len(columns.labels) > 1 or columns.separator is not None:
        return split_labels(f"{place} of {path}", values, columns.labels, columns.separator)
    label = values[columns.label]
    if isinstance(label, list | tuple):
        return split_labels(f"{place} of {path}", values, columns.labels, None)
    plain = plain_label(label)
    if plain is None:
        raise ValueError(
            f"{place} of {path} has the label {label!r}; it must be a string or an integer"
        )
    return plain


def _missing_columns(path: Path, place: str, found: Sequence[str], columns: Columns) -> str:
    names = ", ".join(
        repr(name if len(name) <= MAX_NAME_CHARACTERS else f"{name[:MAX_NAME_CHARACTERS]}...")
        for name in found
    )
    return (
        f"{place} of {path} has the columns {names}, not {columns.text!r} and "
        f"{columns.label!r}; name the right ones with --text-column and --label-column"
    )


def _check_no_header(path: Path, rows: Sequence[_TextRow], columns: Columns) -> None:
    # If columns are given by number, a header would be read as a row, and its label as a class.
    place, _, label = rows[0]
    is_numbered = place == "line 1" and columns.label.isdecimal()
    if is_numbered and len(rows) > 1 and sum(row.label == label for row in rows) == 1:
        raise ValueError(
            f"line 1 of {path} has the label {label!r}, which no other line has; if it is a "
            f"header, name its columns with --text-column and --label-column"
        )
