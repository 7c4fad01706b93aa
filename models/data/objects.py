"""Read tables of named values: JSON Lines, JSON arrays and columns, and Parquet."""

import io
import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

NamedRow = tuple[str, dict[str, Any]]
"""Where a row is, as in `line 3`, and its values by column."""


def read_json(path: Path, content: str, wanted: Collection[str]) -> Iterator[NamedRow]:
    """Yield the objects of JSON Lines, of an array, of an array in an object, or of columns.

    Raises:
        ValueError: If a line or the file is not valid JSON, or a row is not an object.
    """
    begin = content.lstrip()[:1]
    if begin == "[":
        return _items(path, _parse(path, content))
    if begin == "{":
        try:
            document = json.loads(content)
        except ValueError:
            return _json_lines(path, content)
        return _of_document(path, document, wanted)
    return _json_lines(path, content)


def _parse(path: Path, content: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _json_lines(path: Path, content: str) -> Iterator[NamedRow]:
    for line, encoded in enumerate(content.split("\n"), 1):
        if not encoded.strip():
            continue
        try:
            values = json.loads(encoded)
        except ValueError as error:
            raise ValueError(f"line {line} of {path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"line {line} of {path} is not a JSON object; each line must be one")
        yield f"line {line}", values


def _items(path: Path, items: Any) -> Iterator[NamedRow]:
    for number, values in enumerate(items):
        if not isinstance(values, dict):
            raise ValueError(f"item {number} of {path} is not a JSON object; each item must be one")
        yield f"item {number}", values


def _has_columns(document: Mapping[str, Any]) -> bool:
    return all(isinstance(value, list | dict) for value in document.values())


def _of_document(
    path: Path, document: dict[str, Any], wanted: Collection[str]
) -> Iterator[NamedRow]:
    """Yield the rows of one object: columns as pandas writes them, an array in it, or one row."""
    if set(wanted) <= document.keys():
        if not _has_columns(document):
            return iter([("line 1", document)])
        columns = {name: _column(document[name]) for name in wanted}
        if len({len(column) for column in columns.values()}) > 1:
            raise ValueError(f"the columns of {path} differ in length; give one value per row")
        rows = zip(*columns.values(), strict=True)
        return _items(path, [dict(zip(columns, row, strict=True)) for row in rows])
    arrays = [value for value in document.values() if isinstance(value, list)]
    if len(arrays) == 1:
        return _items(path, arrays[0])
    return iter([("line 1", document)])


def _column(values: Any) -> list[Any]:
    return list(values.values()) if isinstance(values, dict) else values


def read_parquet(path: Path, data: bytes, wanted: Collection[str]) -> Iterator[NamedRow]:
    """Yield the rows of a Parquet file; labels that it names are given by their names.

    Raises:
        ValueError: If the file is damaged, or its reader is not installed.
    """
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError(f"{path} needs pyarrow; run make install, or save it as .csv") from error
    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        present = [name for name in file.schema_arrow.names if name in wanted]
        table = file.read(columns=present) if set(wanted) <= set(present) else file.read()
        names = _class_names(table.schema.metadata or {})
        rows = table.to_pylist()
    except Exception as error:  # pyarrow raises types of its own
        raise ValueError(f"{path} is damaged or no Parquet file: {error}") from error
    for number, values in enumerate(rows):
        for column, classes in names.items():
            value = values.get(column)
            if isinstance(value, int) and 0 <= value < len(classes):
                values[column] = classes[value]
        yield f"row {number}", values


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Return the class names of label columns, which the `datasets` library stores in the file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {
        column: list(feature["names"])
        for column, feature in features.items()
        if isinstance(feature, dict) and isinstance(feature.get("names"), list)
    }


def plain_label(value: Any) -> str | None:
    """Write a label as text, a whole number without a point; None if a label cannot be of its type.

    An absent value, null or NaN, becomes an empty text.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        return value.strip()
    return json.dumps(value) if isinstance(value, int) else None
