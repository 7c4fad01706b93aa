"""Split tables of delimited fields into rows: CSV with any usual delimiter, and TSV."""

import csv
import io
import itertools
import re
from collections.abc import Collection, Iterator
from pathlib import Path

DELIMITERS = (",", ";", "\t", "|")
SEP_LINE = re.compile(r'"?sep=(.)"?\r?(\n|$)', re.IGNORECASE)  # Excel's own first line
PROBED_ROWS = 20

FieldRow = tuple[int, list[str]]
"""Line number, from 1, and fields of a row."""


def split_csv(path: Path, content: str, wanted: Collection[str]) -> Iterator[FieldRow]:
    """Yield the rows of a CSV; a quoted field may span several lines.

    A first line `sep=;` names the delimiter. Otherwise it is the one of `,`, `;`, tab and `|` that
    makes the wanted columns appear in the first row.

    Args:
        path: The file, for messages.
        content: Its text.
        wanted: Names of columns, or their numbers from 0.

    Raises:
        ValueError: If the quotes of a row are not closed or not doubled.
    """
    named = SEP_LINE.match(content)
    start, first_line = (named.end(), 2) if named else (0, 1)
    content = content[start:]
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))  # texts may be long
    delimiter = named[1] if named else find_delimiter(content, wanted)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    line = first_line
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + first_line
    except csv.Error as error:
        raise ValueError(
            f"the row that begins in line {line} of {path} is not valid CSV ({error}); double the "
            f"quotes inside a quoted text"
        ) from error


def find_delimiter(content: str, wanted: Collection[str]) -> str:
    """Return the delimiter whose columns have the wanted names, else the most regular one."""
    probed = {each: _first_rows(content, each) for each in DELIMITERS}
    for delimiter, rows in probed.items():
        if rows and set(wanted) <= {name.strip() for name in rows[0]}:
            return delimiter
    for delimiter, rows in probed.items():
        if len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
            return delimiter
    return DELIMITERS[0]


def _first_rows(content: str, delimiter: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter)
    try:
        return list(itertools.islice(filter(None, reader), PROBED_ROWS))
    except csv.Error:
        return []


def split_tsv(content: str) -> Iterator[FieldRow]:
    """Yield the rows of a TSV, which has no quotes: a line is a row and a tab ends a field."""
    for line, row in enumerate(content.split("\n"), 1):
        if row.strip():
            yield line, row.removesuffix("\r").split("\t")
