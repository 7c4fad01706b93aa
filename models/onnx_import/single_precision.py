"""Turn a graph of half precision into one of single precision with the same weights.

A bundle's first variant computes in single precision. Weights of half precision are stored as such
again (`models.export.weights`), and `--precision float16` computes in it again.
"""

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, ValueInfoProto, numpy_helper

from models.onnx_import.graph import graphs_inside

HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def to_single_precision(model: ModelProto) -> None:
    """Change every tensor, constant and cast of half precision to single precision."""
    _change(model.graph)


def _change(graph: GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        _change_type(value)
    for tensor in graph.initializer:
        _change_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _change_tensor(attribute.t)
            if attribute.name in TYPE_ATTRIBUTES and attribute.type == AttributeProto.INT:
                attribute.i = SINGLE if attribute.i == HALF else attribute.i
        for inner in graphs_inside(node):
            _change(inner)


def _change_type(value: ValueInfoProto) -> None:
    if value.type.tensor_type.elem_type == HALF:
        value.type.tensor_type.elem_type = SINGLE


def _change_tensor(tensor: TensorProto) -> None:
    if tensor.data_type == HALF:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
