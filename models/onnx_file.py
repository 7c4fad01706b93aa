"""Finds tensors that an ONNX file leaves to other files, which no hash of a bundle covers.

ONNX Runtime would read them from wherever the file says. The format is protobuf, of which this
reads what leads to tensors: graphs, nodes, attributes, and graphs and functions within.
"""

from collections.abc import Iterator
from pathlib import Path

MAX_DEPTH = 100  # of graphs in nodes of graphs
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # fields of a tensor
# Fields that lead on to tensors, by kind of message: their numbers and the kinds they hold.
INSIDE = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}  # fmt: skip


def refuse_external_data(source: Path | bytes) -> None:
    """Check that a graph holds all of its tensors itself.

    Args:
        source: The graph's file, or the content of such a file.

    Raises:
        ValueError: If a tensor is elsewhere; the message names the file.
    """
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        is_external = _has_external(memoryview(data), "model", 0)
    except (OSError, IndexError, ValueError):
        return  # not ONNX at all, or not there, which ONNX Runtime will say
    if is_external:
        name = source if isinstance(source, Path) else "the graph in memory"
        raise ValueError(
            f"{name} keeps weights in another file, which no hash covers; export the graph with "
            f"its weights inside"
        )


def _has_external(message: memoryview, kind: str, depth: int) -> bool:
    if depth > MAX_DEPTH:
        raise ValueError("the graphs are nested too deeply")
    inside = INSIDE[kind]
    for number, value in _fields(message):
        if kind == "tensor":
            if number == EXTERNAL_DATA or (number == DATA_LOCATION and value == 1):
                return True
        elif number in inside and isinstance(value, memoryview):
            if _has_external(value, inside[number], depth + 1):
                return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int | None]]:
    """Yield number and value of each field: bytes, an integer, or None for other types."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
        elif wire == 2:
            size, at = _varint(message, at)
            if at + size > end:
                raise ValueError("a field is cut off")
            yield number, message[at : at + size]
            at += size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            yield number, None
        else:
            raise ValueError("the type of a field is unknown")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is too long")
