"""Store the weights of a graph in a smaller type on disk; loading restores single precision."""

from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Storage = Literal["exact", "int8"]


def with_stored_weights(graph: onnx.ModelProto, storage: Storage) -> onnx.ModelProto:
    """Return a copy of a graph that stores kernels and matrices in a smaller type.

    Cast and Mul nodes restore single precision; the runtime folds them when it loads the graph.
    Norms, biases and other vectors stay as they are, and so does the arithmetic. Predictions
    therefore differ from the trained network's only by the rounding of weights, and rows stay
    independent of each other.

    Args:
        graph: The graph; it is not changed.
        storage: `exact` stores a tensor in half precision if that is exact, else as it is; `int8`
            rounds to 255 levels per channel, along the axis that loses least.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    initializers: list[TensorProto] = []
    restoring: list[onnx.NodeProto] = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.ndim < 2:
            initializers.append(tensor)
            continue
        stored, scales = _round(values, storage)
        if stored.dtype == np.float32:
            initializers.append(tensor)
            continue
        name = tensor.name
        initializers.append(numpy_helper.from_array(stored, f"{name}_stored"))
        cast = name if scales is None else f"{name}_cast"
        restoring.append(helper.make_node("Cast", [f"{name}_stored"], [cast], to=TensorProto.FLOAT))
        if scales is not None:
            initializers.append(numpy_helper.from_array(scales, f"{name}_scales"))
            restoring.append(helper.make_node("Mul", [cast, f"{name}_scales"], [name]))
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializers)
    nodes = [*restoring, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _round(
    values: NDArray[np.float32], storage: Storage
) -> tuple[NDArray[np.generic], NDArray[np.float32] | None]:
    """Return the tensor to store, and the scales that restore it, if there are any."""
    if storage == "int8":
        first, last = to_int8(values, 0), to_int8(values, values.ndim - 1)
        return min(first, last, key=lambda pair: _squared_error(values, *pair))
    half = np.clip(values, -65504, 65504).astype(np.float16)  # the limits of half precision
    return (half if np.array_equal(half, values) else values), None


def to_int8(values: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round to 255 levels per channel of an axis; return the levels and each channel's scale."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    largest = np.abs(values).max(others, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(values / scales).astype(np.int8), scales


def _squared_error(
    values: NDArray[np.float32], stored: NDArray[np.int8], scales: NDArray[np.float32]
) -> float:
    return float(np.square(stored * scales - values).sum())
