"""Let a graph that was exported for a fixed number of rows take any number of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from models.onnx_import.graph import replace_nodes
from models.onnx_import.inputs import ROWS


def fixed_rows(model: ModelProto) -> int | None:
    """Return the number of rows that a graph was exported for; None if it takes any number."""
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None


def free_rows(model: ModelProto, rows: int) -> None:
    """Change the inputs and the constants that hold a number of rows.

    These are the target shapes of Reshape and Expand, and constants of one row that are joined with
    rows, such as a class token. Whether that was all, only running the graph shows.

    Args:
        model: The graph; it is changed.
        rows: The rows that it was exported for.
    """
    sizes = _first_sizes(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = ROWS
    source = model.graph.input[0].name
    nodes = list[NodeProto]()
    for node in model.graph.node:
        if node.op_type in ("Reshape", "Expand") and node.input[1] in constants:
            shape = constants[node.input[1]]
            if shape.size and shape[0] == rows:
                _set_shape(model, node, _freed(node, shape, sizes.get(node.input[0])))
        elif node.op_type == "Concat" and _axis(node) != 0:
            nodes += _repeated_constants(model, node, constants, source)
        nodes.append(node)
    replace_nodes(model, nodes)
    forget_shapes(model)


def forget_shapes(model: ModelProto) -> None:
    """Remove what a graph says of the shapes within it and of its outputs."""
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _first_sizes(model: ModelProto) -> Mapping[str, int]:
    """Size of the first axis of every tensor, as exported."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.input, *inferred.graph.value_info)
    return {
        value.name: value.type.tensor_type.shape.dim[0].dim_value
        for value in values
        if len(value.type.tensor_type.shape.dim)
    }


def _freed(node: NodeProto, shape: np.ndarray, first: int | None) -> np.ndarray:
    """A target shape whose first size is that of the rows."""
    freed = shape.copy()
    if node.op_type == "Expand":
        freed[0] = 1  # keeps the rows there are
    elif -1 not in shape:
        freed[0] = -1
    elif first == shape[0]:
        freed[0] = 0  # as before the node
    return freed


def _set_shape(model: ModelProto, node: NodeProto, shape: np.ndarray) -> None:
    name = f"{node.output[0]}_shape"
    model.graph.initializer.append(numpy_helper.from_array(shape, name))
    node.input[1] = name


def _repeated_constants(
    model: ModelProto, node: NodeProto, constants: Mapping[str, np.ndarray], source: str
) -> list[NodeProto]:
    """Nodes that repeat the constants of one row, which a Concat joins with rows, for every row."""
    alone = [i for i, name in enumerate(node.input) if name in constants]
    if len(alone) == len(node.input):
        return []
    nodes = list[NodeProto]()
    for place in alone:
        name, values = node.input[place], constants[node.input[place]]
        if values.ndim < 2 or values.shape[0] != 1:
            continue
        made = f"{node.output[0]}_{place}"
        others = numpy_helper.from_array(np.ones(values.ndim - 1, np.int64), f"{made}_ones")
        first = numpy_helper.from_array(np.array([0]), f"{made}_first")
        model.graph.initializer.extend([others, first])
        steps = (
            ("Shape", [source], f"{made}_of"),
            ("Gather", [f"{made}_of", first.name], f"{made}_rows"),
            ("Concat", [f"{made}_rows", others.name], f"{made}_shape"),
            ("Expand", [name, f"{made}_shape"], f"{made}_repeated"),
        )
        for kind, inputs, output in steps:
            more: dict[str, Any] = {"axis": 0} if kind == "Concat" else {}
            nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}_node", **more))
        node.input[place] = f"{made}_repeated"
    return nodes


def _axis(node: NodeProto) -> int:
    return next((each.i for each in node.attribute if each.name == "axis"), 0)
