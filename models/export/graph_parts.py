"""The stages and heads of a network, prepared to be quantised."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from models.export.onnx_graphs import Graphs
from models.export.shortcuts import replace_shortcuts
from models.export.weights import to_int8
from models.runtime.onnx_backend import CPU

WEIGHTED = ("Conv", "Gemm", "MatMul")
# Operators between convolutions; the runtime has integer kernels for them or only moves values.
BETWEEN = (
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "GlobalAveragePool",
    "MaxPool",
    "Pad",
    "Relu",
    "Slice",
)
ACTIVATIONS = ("Clip", "Relu")
SMALL_TABLE = 4096  # values; smaller tables of embeddings stay as they are


class CannotQuantise(ValueError):
    """A network cannot run in integers; the message says why."""


@dataclass(frozen=True)
class Part:
    """A stage or head, ready to be quantised.

    Attributes:
        name: `stages/0`, ...
        model: The graph after ONNX Runtime's basic optimisations, which fold norms into kernels.
        weighted: Nodes with constant weights that can be quantised.
        between: Other nodes that stay in integers.
        tensors: Activations that need ranges.
        rounds_products: Whether products are rounded to 8 bits, because what reads them is too.
    """

    name: str
    model: ModelProto
    weighted: list[str]
    between: list[str]
    tensors: list[str]
    rounds_products: bool


def prepare(graphs: Graphs) -> tuple[list[Part], list[Part]]:
    """Prepare the K stages and the K heads of a network."""
    stages = [optimise(graph) for graph in graphs.stages]
    heads = [optimise(graph) for graph in graphs.heads]
    # In encoders, sums feed norms, and both lose much in 8 bits; they stay in float.
    is_encoder = any(
        node.op_type == "LayerNormalization" for model in stages for node in model.graph.node
    )
    return (
        [_part(f"stages/{k}", model, is_encoder) for k, model in enumerate(stages)],
        [_part(f"heads/{k}", model, is_encoder) for k, model in enumerate(heads)],
    )


def optimise(graph: ModelProto) -> ModelProto:
    """Fold norms into kernels, leave only integer operators between them, and infer all types."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        ort.InferenceSession(graph.SerializeToString(), options, providers=CPU.providers)
        model = load_model_with_shape_infer(path)
        replace_shortcuts(model)
        _round_embeddings(model)
        onnx.save(model, path)
        inferred: ModelProto = load_model_with_shape_infer(path)
    return inferred


def _part(name: str, model: ModelProto, is_encoder: bool) -> Part:
    constants = {tensor.name for tensor in model.graph.initializer}
    weighted = [
        node
        for node in model.graph.node
        if node.op_type in (WEIGHTED[1:] if is_encoder else WEIGHTED) and node.input[1] in constants
    ]
    if name.startswith("heads/"):
        weighted = weighted[:-1]  # a classifier is cheap, and its rounding would show undamped
    between = [] if is_encoder else [n for n in model.graph.node if n.op_type in BETWEEN]
    if not weighted:
        between = []
    floats = _float_values(model) - constants
    wanted = dict.fromkeys(
        tensor
        for node in (*weighted, *between)
        for tensor in (*node.input, *(() if is_encoder else node.output))
        if tensor in floats
    )
    for source in activated(model, between):
        wanted.pop(source, None)
    return Part(
        name,
        model,
        [node.name for node in weighted],
        [node.name for node in between],
        list(wanted),
        rounds_products=not is_encoder,
    )


def _float_values(model: ModelProto) -> set[str]:
    graph = model.graph
    return {
        value.name
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }


def activated(model: ModelProto, nodes: Iterable[NodeProto]) -> dict[str, str]:
    """Map tensors that only an activation reads to its output, which has all that 8 bits need."""
    reads = [tensor for node in model.graph.node for tensor in node.input]
    return {
        node.input[0]: node.output[0]
        for node in nodes
        if node.op_type in ACTIVATIONS and reads.count(node.input[0]) == 1
    }


def _round_embeddings(model: ModelProto) -> None:
    """Store tables of embeddings in 8 bits per value and a scale per row."""
    tables = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes, rounded = list[NodeProto](), set[str]()
    for node in model.graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or table.data_type != TensorProto.FLOAT or len(table.dims) != 2:
            nodes.append(node)
            continue
        if np.prod(table.dims) < SMALL_TABLE or any(
            a.name == "axis" and a.i for a in node.attribute
        ):
            nodes.append(node)
            continue
        name, out = table.name, node.output[0]
        if name not in rounded:
            rounded.add(name)
            levels, scales = to_int8(numpy_helper.to_array(table), 0)
            model.graph.initializer.extend(
                [
                    numpy_helper.from_array(levels, f"{name}_int8"),
                    # A vector: matrices that stay in float are rounded to half precision.
                    numpy_helper.from_array(scales.ravel(), f"{name}_scales"),
                    numpy_helper.from_array(np.array([-1]), f"{name}_last"),
                ]
            )
        nodes += [
            helper.make_node("Gather", [f"{name}_int8", node.input[1]], [f"{out}_int8"]),
            helper.make_node("Cast", [f"{out}_int8"], [f"{out}_cast"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{name}_scales", node.input[1]], [f"{out}_scale"]),
            helper.make_node("Unsqueeze", [f"{out}_scale", f"{name}_last"], [f"{out}_scales"]),
            helper.make_node("Mul", [f"{out}_cast", f"{out}_scales"], [out]),
        ]
        for added in nodes[-5:]:
            added.name = f"{node.name}_{added.output[0]}"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = {tensor for node in nodes for tensor in node.input}
    keep_initializers(model, lambda name: name not in rounded or name in read)


def keep_initializers(model: ModelProto, kept: Callable[[str], bool]) -> None:
    """Remove the constants of a graph whose names are not `kept`."""
    initializers = [tensor for tensor in model.graph.initializer if kept(tensor.name)]
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializers)
