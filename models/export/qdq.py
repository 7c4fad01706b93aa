"""Builds integer graphs: ONNX Runtime's quantiser, biases corrected, states that stay uint8."""

from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from models.export.activation_ranges import Range, Ranges
from models.export.bias_correction import ChannelMeans, correct_biases, correctable
from models.export.graph_parts import WEIGHTED, CannotQuantise, Part, activated, keep_initializers
from models.export.onnx_graphs import Graphs

# CPUs without VNNI add pairs of uint8 x int8 products in 16 bits, which 8-bit weights overflow. On
# them a ResNet-56 lost half a point. With 7 bits every CPU gives the same answers.
WEIGHT_BITS = 7
Node = tuple[str, str]  # a graph's name and a node's


class _Scale(NamedTuple):
    """Scale and zero point of a state that travels as uint8."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8]


def build_graphs(
    stages: list[Part],
    heads: list[Part],
    ranges: dict[str, Ranges],
    means: dict[str, ChannelMeans],
    in_float: frozenset[Node],
) -> Graphs:
    """Quantise every graph; states are uint8 wherever a stage ends with a quantised activation."""
    built = Graphs([], [])
    scales: list[_Scale | None] = [None] * len(stages[0].model.graph.input)
    for stage, head in zip(stages, heads, strict=True):
        model = _quantise(stage, ranges[stage.name], means[stage.name], in_float, scales)
        scales = [_cut_output(model, i) for i in range(len(model.graph.output))]
        built.stages.append(_finish(model))
        model = _quantise(head, ranges[head.name], means[head.name], in_float, scales)
        built.heads.append(_finish(model))
    return built


def _quantise(
    part: Part,
    ranges: Ranges,
    means: ChannelMeans,
    in_float: frozenset[Node],
    scales: list[_Scale | None],
) -> ModelProto:
    """Quantise one graph.

    Args:
        part: The graph.
        ranges: Ranges of its tensors.
        means: Means of the inputs of its convolutions.
        in_float: Nodes that stay as they are.
        scales: For each tensor of its input, the scale if it comes as uint8.
    """
    model = ModelProto()
    model.CopyFrom(part.model)
    inputs = [value.name for value in model.graph.input]
    weighted = [name for name in part.weighted if (part.name, name) not in in_float]
    if weighted:
        by_input = dict(zip(inputs, scales, strict=True))
        try:
            model = _with_scales(model, part, weighted, ranges, by_input)
            if correctable(part.model, weighted):
                corrected = correct_biases(part.model, model, weighted, means)
                model = _with_scales(corrected, part, weighted, ranges, by_input)
        except Exception as error:  # the library raises many types
            raise CannotQuantise(
                f"{part.name} of the network cannot be quantised ({error}); build with "
                f"--precision float32"
            ) from error
    for i, scale in enumerate(scales):
        if scale is not None:
            _take_uint8(model, i, scale)
    return model


def _with_scales(
    model: ModelProto,
    part: Part,
    weighted: list[str],
    ranges: Ranges,
    scales: dict[str, _Scale | None],
) -> ModelProto:
    names = {*weighted, *part.between}
    nodes = [node for node in model.graph.node if node.name in names]
    known = dict(ranges)
    for source, target in activated(model, nodes).items():
        known[source] = known[target]
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=True,  # 7 bits: see WEIGHT_BITS
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(
            CalibrationMethod.MinMax, {name: _tensor_data(span) for name, span in known.items()}
        ),
        nodes_to_quantize=[node.name for node in nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({node.op_type for node in nodes}),
        extra_options={
            # Products that feed float sums need not be rounded once more.
            "OpTypesToExcludeOutputQuantization": [] if part.rounds_products else [*WEIGHTED],
            "TensorQuantOverrides": {
                name: [{"scale": scale.scale, "zero_point": scale.zero_point}]
                for name, scale in scales.items()
                if scale is not None and name in known
            },
        },
    )
    quantised: ModelProto = quantizer.quantize_model()
    return quantised


def _tensor_data(span: Range) -> TensorData:
    return TensorData(lowest=np.float32(span.lowest), highest=np.float32(span.highest))


def _cut_output(model: ModelProto, index: int) -> _Scale | None:
    """Let an output leave before it is made float again; None if it is not quantised."""
    graph = model.graph
    output = graph.output[index]
    name = output.name
    last = next(node for node in graph.node if name in node.output)
    if last.op_type != "DequantizeLinear":
        return None
    constants = {tensor.name: tensor for tensor in graph.initializer}
    stored, scale, zero_point = last.input[:3]
    _rename(graph, name, f"{name}_float")
    _rename(graph, stored, name)
    output.type.tensor_type.elem_type = TensorProto.UINT8
    if not any(f"{name}_float" in node.input for node in graph.node):
        graph.node.remove(last)
    return _Scale(
        numpy_helper.to_array(constants[scale]), numpy_helper.to_array(constants[zero_point])
    )


def _take_uint8(model: ModelProto, index: int, scale: _Scale) -> None:
    """Let an input come as uint8."""
    graph = model.graph
    value = graph.input[index]
    name = value.name
    value.type.tensor_type.elem_type = TensorProto.UINT8
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] == name:
            rounded = node.output[0]
            graph.node.remove(node)
            _rename(graph, rounded, name)
            return
    _rename(graph, name, f"{name}_float")
    graph.initializer.extend(
        [
            numpy_helper.from_array(scale.scale, f"{name}_state_scale"),
            numpy_helper.from_array(scale.zero_point, f"{name}_state_zero_point"),
        ]
    )
    inputs = [name, f"{name}_state_scale", f"{name}_state_zero_point"]
    graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [f"{name}_float"]))


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a tensor in all nodes."""
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new


def _finish(model: ModelProto) -> ModelProto:
    """Remove what is not needed to run a graph, and order its nodes."""
    graph = model.graph
    for element in (model, graph, *graph.node, *graph.input, *graph.output):
        del element.metadata_props[:]
        element.doc_string = ""
    del graph.value_info[:]
    domains = {node.domain for node in graph.node}
    imports = [each for each in model.opset_import if each.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    read = {tensor for node in graph.node for tensor in node.input}
    keep_initializers(model, lambda name: name in read)
    _round_to_half(graph)
    ONNXModel(model).topological_sort()  # the library appends its nodes at the end
    return model


def _round_to_half(graph: onnx.GraphProto) -> None:
    """Round matrices that stay in float to half precision, so that they are stored in half."""
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            values = numpy_helper.to_array(tensor)
            if np.abs(values).max(initial=0) <= np.finfo(np.float16).max:
                half = values.astype(np.float16).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
