"""Hand-made ONNX graphs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import NodeProto, TensorProto, ValueInfoProto, helper

Values = Mapping[str, tuple[int, int]]  # element type and number of dimensions, by name


def write_graph(
    path: Path,
    nodes: Sequence[NodeProto],
    inputs: Values,
    outputs: Values,
    constants: Sequence[TensorProto] = (),
) -> Path:
    """Write a graph of tensors whose sizes are all dynamic."""
    graph = helper.make_graph(nodes, "made", _described(inputs), _described(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def _described(values: Values) -> list[ValueInfoProto]:
    return [
        helper.make_tensor_value_info(name, kind, [f"{name}_{i}" for i in range(rank)])
        for name, (kind, rank) in values.items()
    ]
