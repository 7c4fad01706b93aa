"""Correct the biases of convolutions for the shift that rounded weights cause.

Rounding errors of a kernel do not average out: they shift the mean of each output channel, and the
shifts add up from layer to layer. The shift is the error times the mean input, so a bias can take
it back (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", section 4.2; the means come from data here).
"""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper


class ChannelMeans:
    """Mean of every channel of activations (N, C, H, W), by name."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._rows: dict[str, int] = {}

    def add(self, name: str, values: NDArray[np.float32]) -> None:
        """Add a batch."""
        sums = values.mean((2, 3), dtype=np.float64).sum(0)
        self._sums[name] = self._sums.get(name, 0.0) + sums
        self._rows[name] = self._rows.get(name, 0) + len(values)

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """Return the means, (C,)."""
        return self._sums[name] / self._rows[name]


def correctable(model: ModelProto, names: Collection[str]) -> list[NodeProto]:
    """Return the convolutions among some nodes whose bias is a constant."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.name in names
        and len(node.input) > 2
        and node.input[2] in constants
    ]


def correct_biases(
    model: ModelProto, quantised: ModelProto, names: Collection[str], means: ChannelMeans
) -> ModelProto:
    """Return a copy of a float graph whose biases make up for the rounding of its kernels.

    Args:
        model: The graph in single precision.
        quantised: The same graph as ONNX Runtime's quantiser leaves it.
        names: Nodes that it quantised.
        means: Means of their inputs.
    """
    corrected = ModelProto()
    corrected.CopyFrom(model)
    kernels = {tensor.name: tensor for tensor in corrected.graph.initializer}
    rounded = {tensor.name: tensor for tensor in quantised.graph.initializer}
    for node in correctable(corrected, names):
        source, kernel, bias = node.input[:3]
        weights = numpy_helper.to_array(kernels[kernel])
        steps = numpy_helper.to_array(rounded[f"{kernel}_quantized"]).astype(np.float64)
        scales = numpy_helper.to_array(rounded[f"{kernel}_scale"]).reshape(-1, 1, 1, 1)
        error = (steps * scales - weights).sum((2, 3))  # (O, C / groups)
        groups = len(means[source]) // error.shape[1]
        by_group = np.repeat(means[source].reshape(groups, -1), len(error) // groups, 0)
        shift = (error * by_group).sum(1)
        before = numpy_helper.to_array(kernels[bias])
        kernels[bias].CopyFrom(numpy_helper.from_array((before - shift).astype(np.float32), bias))
    return corrected
