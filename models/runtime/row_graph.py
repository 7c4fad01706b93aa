"""The graph that picks rows from batches and joins them: bytes of an ONNX file.

It is written field by field, since the package that knows the format is none of the server's. The
numbers of the fields are those of `onnx.proto`.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

IR_VERSION = 8
OPSET = 13


class Kind(NamedTuple):
    """Of a tensor: ONNX's number of its element type, and how many dimensions it has."""

    element_type: int
    rank: int


INDICES = Kind(element_type=7, rank=1)  # int64


def row_graph(kinds: Sequence[Kind], num_parts: int) -> bytes:
    """Write a graph that makes one batch from rows of several.

    Its inputs are `rows_{p}` (R_p,) int64, the places of the rows, then `value_{t}_{p}` (A_p, ...);
    its outputs `joined_{t}` (sum of R_p, ...), for parts p and tensors t. A part of no rows adds
    none.

    Args:
        kinds: Of the state's tensors.
        num_parts: P.
    """
    parts = range(num_parts)
    inputs = [_value(f"rows_{p}", INDICES) for p in parts]
    outputs, nodes = list[bytes](), list[bytes]()
    for t, kind in enumerate(kinds):
        inputs += [_value(f"value_{t}_{p}", kind) for p in parts]
        outputs.append(_value(f"joined_{t}", kind))
        picked = [f"picked_{t}_{p}" for p in parts]
        nodes += [_node("Gather", [f"value_{t}_{p}", f"rows_{p}"], picked[p]) for p in parts]
        nodes.append(_node("Concat", picked, f"joined_{t}"))
    graph = _fields(1, nodes) + _field(2, "rows") + _fields(11, inputs) + _fields(12, outputs)
    opset = _field(1, "") + _field(2, OPSET)
    return _field(1, IR_VERSION) + _field(7, graph) + _field(8, opset)


def _node(operator: str, inputs: Iterable[str], output: str) -> bytes:
    """A NodeProto along the first dimension."""
    axis = _field(1, "axis") + _field(3, 0) + _field(20, 2)  # an AttributeProto: an integer
    return _fields(1, inputs) + _field(2, output) + _field(4, operator) + _field(5, axis)


def _value(name: str, kind: Kind) -> bytes:
    """A ValueInfoProto of a tensor whose sizes are open."""
    shape = _fields(1, [b""] * kind.rank)
    return _field(1, name) + _field(2, _field(1, _field(1, kind.element_type) + _field(2, shape)))


def _fields(number: int, values: Iterable[str | bytes]) -> bytes:
    return b"".join(_field(number, value) for value in values)


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])
