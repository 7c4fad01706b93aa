"""How a graph stores its weights: smaller on the disk, single precision once it is loaded."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.bundle import Weights


def with_stored_weights(graph: onnx.ModelProto, weights: Weights) -> onnx.ModelProto:
    """The graph with kernels and matrices in a smaller type, behind nodes that fold at loading.

    Norms, biases and other vectors stay as they are, and so does the arithmetic: answers differ
    from those of the trained network by the rounding of its weights alone, and no row's answer
    depends on others.

    Args:
        graph: It stays as it is.
        weights: `float32` stores what half precision holds exactly in half precision and the rest
            as it is; `float16` rounds to half precision; `int8` to 255 levels a channel, along the
            axis that loses least.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    kept: list[TensorProto] = []
    widened: list[onnx.NodeProto] = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.ndim < 2:
            kept.append(tensor)
            continue
        stored, scales = _rounded(values, weights)
        if stored.dtype == np.float32:
            kept.append(tensor)
            continue
        name = tensor.name
        kept.append(numpy_helper.from_array(stored, f"{name}_stored"))
        cast = name if scales is None else f"{name}_cast"
        widened.append(helper.make_node("Cast", [f"{name}_stored"], [cast], to=TensorProto.FLOAT))
        if scales is not None:
            kept.append(numpy_helper.from_array(scales, f"{name}_scales"))
            widened.append(helper.make_node("Mul", [cast, f"{name}_scales"], [name]))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    nodes = [*widened, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _rounded(
    values: NDArray[np.float32], weights: Weights
) -> tuple[NDArray[np.generic], NDArray[np.float32] | None]:
    """The tensor as stored, and what it is multiplied by to be itself again, if anything."""
    if weights == "int8":
        first, last = _to_int8(values, 0), _to_int8(values, values.ndim - 1)
        return min(first, last, key=lambda pair: _loss(values, *pair))
    half = np.clip(values, -65504, 65504).astype(np.float16)
    exact = np.array_equal(half, values)
    return (half if exact or weights == "float16" else values), None


def _to_int8(
    values: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    others = tuple(i for i in range(values.ndim) if i != axis)
    largest = np.abs(values).max(others, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(values / scales).astype(np.int8), scales


def _loss(
    values: NDArray[np.float32], stored: NDArray[np.int8], scales: NDArray[np.float32]
) -> float:
    return float(np.square(stored * scales - values).sum())
