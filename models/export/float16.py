"""Convert graphs to half precision, for devices with fast float16 arithmetic."""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from models.export.onnx_graphs import Graphs

# Encoders add the lowest single-precision number to the logits of padding. Softmax makes 0 of this
# one as well, and it stays finite when a logit is added.
LOWEST = -1e4
# Log-probabilities are read by policies, and are few.
IN_SINGLE = ("LogSoftmax",)


def to_float16(graphs: Graphs) -> Graphs:
    """Convert all stages and heads to half precision.

    The first stage keeps the type of its input, and heads return single precision. States between
    stages are float16.

    Args:
        graphs: Graphs in single precision; they are not changed.
    """
    first, *later = graphs.stages
    return Graphs(
        [
            _convert(first, [value.name for value in first.graph.input]),
            *(_convert(stage, []) for stage in later),
        ],
        [_convert(head, [value.name for value in head.graph.output]) for head in graphs.heads],
    )


def _convert(graph: ModelProto, in_single: list[str]) -> ModelProto:
    """Convert a graph except the inputs and outputs that are named."""
    model = ModelProto()
    model.CopyFrom(graph)
    _raise_lowest(model)
    converted: ModelProto = convert_float_to_float16(
        model, keep_io_types=in_single, op_block_list=list(IN_SINGLE)
    )
    _skip_half(converted)
    ONNXModel(converted).topological_sort()  # the library appends its casts at the end
    del converted.graph.value_info[:]
    return converted


def _raise_lowest(model: ModelProto) -> None:
    """Replace constants that half precision cannot hold by one that it can."""
    constants = [*model.graph.initializer]
    for node in model.graph.node:
        constants += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
    for tensor in constants:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if (values < np.finfo(np.float16).min).any():
            raised = np.maximum(values, np.float32(LOWEST))
            tensor.CopyFrom(numpy_helper.from_array(raised, tensor.name))


def _skip_half(model: ModelProto) -> None:
    """Let what is computed in single precision leave a graph without being rounded on the way."""
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        before = makers.get(node.input[0]) if _casts_to(node, TensorProto.FLOAT) else None
        if before is None or not _casts_to(before, TensorProto.FLOAT16):
            continue
        source = makers.get(before.input[0])
        if source is not None and source.op_type in IN_SINGLE:
            node.input[0] = before.input[0]
    read = {name for node in model.graph.node for name in node.input}
    read.update(value.name for value in model.graph.output)
    for node in list(model.graph.node):
        if node.op_type == "Cast" and node.output[0] not in read:
            model.graph.node.remove(node)


def _casts_to(node: NodeProto, type: int) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == type
