"""Write the ONNX graph that selects rows of several batches and joins them.

The file is encoded field by field, because the server does not install the `onnx` package. The
field numbers are those of `onnx.proto`.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

IR_VERSION = 8
OPSET = 13


class TensorType(NamedTuple):
    """ONNX's number of a tensor's element type, and its number of dimensions."""

    element_type: int
    rank: int


INDICES = TensorType(element_type=7, rank=1)  # int64


def row_graph(types: Sequence[TensorType], num_parts: int) -> bytes:
    """Write a graph that makes one batch from rows of several.

    For parts p and tensors t, its inputs are `rows_{p}` (R_p,) int64, the indices of the rows, then
    `value_{t}_{p}` (A_p, ...). Its outputs are `joined_{t}` (sum of R_p, ...). A part may have no
    rows.

    Args:
        types: Types of the state's tensors.
        num_parts: Number of parts, P.
    """
    parts = range(num_parts)
    inputs = [_value(f"rows_{p}", INDICES) for p in parts]
    outputs, nodes = list[bytes](), list[bytes]()
    for t, type in enumerate(types):
        inputs += [_value(f"value_{t}_{p}", type) for p in parts]
        outputs.append(_value(f"joined_{t}", type))
        selected = [f"selected_{t}_{p}" for p in parts]
        nodes += [_node("Gather", [f"value_{t}_{p}", f"rows_{p}"], selected[p]) for p in parts]
        nodes.append(_node("Concat", selected, f"joined_{t}"))
    graph = _fields(1, nodes) + _field(2, "rows") + _fields(11, inputs) + _fields(12, outputs)
    opset = _field(1, "") + _field(2, OPSET)
    return _field(1, IR_VERSION) + _field(7, graph) + _field(8, opset)


def _node(operator: str, inputs: Iterable[str], output: str) -> bytes:
    """Encode a NodeProto that works along the first dimension."""
    axis = _field(1, "axis") + _field(3, 0) + _field(20, 2)  # an AttributeProto: an integer
    return _fields(1, inputs) + _field(2, output) + _field(4, operator) + _field(5, axis)


def _value(name: str, type: TensorType) -> bytes:
    """Encode a ValueInfoProto of a tensor whose sizes are all dynamic."""
    shape = _fields(1, [b""] * type.rank)
    return _field(1, name) + _field(2, _field(1, _field(1, type.element_type) + _field(2, shape)))


def _fields(number: int, values: Iterable[str | bytes]) -> bytes:
    return b"".join(_field(number, value) for value in values)


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Encode seven bits per byte, the lowest first; the eighth bit means that more bytes follow."""
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])
