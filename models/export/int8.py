"""Quantise graphs to integers: 7-bit weights, and activations of 8 bits with fixed scales."""

import itertools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from models.backend import State
from models.export.activation_ranges import METHODS, ActivationHistograms, Range, Ranges
from models.export.bias_correction import ChannelMeans, correct_biases, correctable
from models.export.onnx_graphs import Graphs
from models.runtime.onnx_backend import CPU, Graph, open_graph

LEAST_ROWS = 100
# CPUs without VNNI add pairs of uint8 x int8 products in 16 bits, which 8-bit weights overflow. On
# them a ResNet-56 lost half a point. With 7 bits every CPU gives the same answers.
WEIGHT_BITS = 7
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
CALIBRATION_BYTES = 128 << 20  # of activations that are held at once
MAX_TRIALS = 24  # groups of nodes whose sensitivity is measured
SMALL_TABLE = 4096  # values; smaller tables of embeddings stay as they are


class CannotQuantise(ValueError):
    """A network cannot run in integers; the message says why."""


class LosesAccuracy(CannotQuantise):
    """An exit loses too much, even with the most sensitive nodes in float."""


class Int8Graphs(NamedTuple):
    """Quantised graphs and how they were made.

    Attributes:
        graphs: The graphs. States between them are uint8 where both sides compute in integers.
        method: For people to read: how scales were chosen, what it cost, and what stayed in float.
    """

    graphs: Graphs
    method: dict[str, Any]


class Scores(NamedTuple):
    """Differences between quantised and float answers at each exit, (K,) each.

    Attributes:
        kl: Mean KL divergence of the log-probabilities from those in float.
        agreement: Share of rows with the same most probable class.
        expected_loss: Accuracy lost if the float network's probabilities are right: the mean
            probability of its class less that of the class which replaced it. Rows whose two best
            classes are nearly equal may swap them at no cost.
    """

    kl: NDArray[np.float64]
    agreement: NDArray[np.float64]
    expected_loss: NDArray[np.float64]


class _Scale(NamedTuple):
    """Scale and zero point of a state that travels as uint8."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8]


Node = tuple[str, str]  # a graph's name and a node's


@dataclass(frozen=True)
class _Part:
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


def quantise_graphs(
    graphs: Graphs,
    scale_rows: Sequence[State],
    choice_rows: Sequence[State],
    *,
    max_loss: float,
    log_step: Callable[[str], None],
) -> Int8Graphs:
    """Quantise all stages and heads.

    Ranges of activations come from min-max, percentile or entropy, whichever loses least. Scales
    are fixed, so rows never depend on each other. If an exit then loses too much, the most
    sensitive nodes stay in float.

    Args:
        graphs: Graphs in single precision; they are not changed.
        scale_rows: Batches of inputs that fix the ranges, `LEAST_ROWS` rows or more.
        choice_rows: Batches of inputs by which alternatives are compared.
        max_loss: Expected accuracy that an exit may lose, as in `Scores`.
        log_step: Called with each step as it begins.

    Raises:
        CannotQuantise: If there are too few rows, nothing to quantise, a graph that the runtime
            cannot quantise, or too great a loss.
    """
    rows = sum(len(state[0]) for state in scale_rows)
    check_rows(rows)
    stages, heads = _prepare(graphs)
    parts = [*stages, *heads]
    if not any(part.weighted for part in parts):
        raise CannotQuantise(
            f"the network has no {', '.join(WEIGHTED)} with constant weights before its "
            f"classifiers, so int8 would gain nothing; build with --precision float32"
        )
    log_step(f"int8: measuring the ranges of activations on {rows} rows")
    seen = _collect(stages, heads, scale_rows)
    means = {part: activations.means for part, activations in seen.items()}
    choice = _Choice(stages, heads, means, choice_rows, _answers(graphs, choice_rows))
    log_step(f"int8: comparing scales by {', '.join(METHODS)}")
    tried = []
    for name, method in METHODS.items():
        ranges = {part: method(each.histograms) for part, each in seen.items()}
        built, scores = choice.try_out(ranges, frozenset())
        tried.append(_Candidate(name, ranges, built, scores))
    best = min(tried, key=lambda candidate: candidate.scores.kl.mean())
    built, scores, in_float = best.built, best.scores, list[Node]()
    if scores.expected_loss.max() > max_loss:
        log_step("int8: finding the most sensitive nodes")
        built, scores, in_float = _keep_sensitive_in_float(choice, best.ranges, max_loss)
    method_record = {
        "scales": best.name,
        "kl_by_scales": {each.name: _rounded(each.scores.kl.mean()) for each in tried},
        "weight_bits": WEIGHT_BITS,
        "scale_rows": rows,
        "choice_rows": sum(len(state[0]) for state in choice_rows),
        "states": sorted({_state_type(graph) for graph in built.stages}),
        "kl": _rounded(scores.kl),
        "agreement": _rounded(scores.agreement),
        "expected_loss": _rounded(scores.expected_loss),
        "nodes_in_float": [f"{part}: {node}" for part, node in in_float],
    }
    return Int8Graphs(built, method_record)


def check_rows(rows: int) -> None:
    """Check that there are enough training rows to fix scales.

    Raises:
        CannotQuantise: If there are not.
    """
    if rows < LEAST_ROWS:
        raise CannotQuantise(
            f"int8 needs {LEAST_ROWS} or more training rows to fix its scales, and there are "
            f"{rows}; give more or build with --precision float32"
        )


class _Candidate(NamedTuple):
    name: str
    ranges: dict[str, Ranges]
    built: Graphs
    scores: Scores


@dataclass(frozen=True)
class _Choice:
    """Builds alternatives and compares them with the float network."""

    stages: list[_Part]
    heads: list[_Part]
    means: dict[str, ChannelMeans]
    rows: Sequence[State]
    expected: list[NDArray[np.float32]]

    def try_out(
        self, ranges: dict[str, Ranges], in_float: frozenset[Node]
    ) -> tuple[Graphs, Scores]:
        built = _build(self.stages, self.heads, ranges, self.means, in_float)
        return built, _compare(self.expected, _answers(built, self.rows))


def _keep_sensitive_in_float(
    choice: _Choice, ranges: dict[str, Ranges], max_loss: float
) -> tuple[Graphs, Scores, list[Node]]:
    """Leave nodes in float, the most sensitive first, until no exit loses more than `max_loss`.

    Neighbours are tried together, so that there are at most `MAX_TRIALS` trials, and their number
    in float doubles until they suffice.
    """
    nodes = [
        (part.name, node) for part in (*choice.stages, *choice.heads) for node in part.weighted
    ]
    size = -(-len(nodes) // MAX_TRIALS)
    groups = [nodes[first : first + size] for first in range(0, len(nodes), size)]
    left = [choice.try_out(ranges, frozenset(group))[1].kl.mean() for group in groups]
    order = [groups[i] for i in np.argsort(left)]
    count, worst = 1, 0.0
    while count < len(groups):
        in_float = list(itertools.chain.from_iterable(order[:count]))
        built, scores = choice.try_out(ranges, frozenset(in_float))
        worst = float(scores.expected_loss.max())
        if worst <= max_loss:
            return built, scores, sorted(in_float, key=nodes.index)
        count *= 2
    raise LosesAccuracy(
        f"an exit would lose {100 * worst:.2f} points of accuracy in int8, even with its most "
        f"sensitive layers in float, and {100 * max_loss:g} are allowed; allow more with "
        f"--max-precision-loss"
    )


def _prepare(graphs: Graphs) -> tuple[list[_Part], list[_Part]]:
    stages = [_optimise(graph) for graph in graphs.stages]
    heads = [_optimise(graph) for graph in graphs.heads]
    # In encoders, sums feed norms, and both lose much in 8 bits; they stay in float.
    is_encoder = any(
        node.op_type == "LayerNormalization" for model in stages for node in model.graph.node
    )
    return (
        [_part(f"stages/{k}", model, is_encoder) for k, model in enumerate(stages)],
        [_part(f"heads/{k}", model, is_encoder) for k, model in enumerate(heads)],
    )


def _optimise(graph: ModelProto) -> ModelProto:
    """Fold norms into kernels, round embeddings, and infer the types of all tensors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        ort.InferenceSession(graph.SerializeToString(), options, providers=CPU.providers)
        model = onnx.load(path)
        _round_embeddings(model)
        onnx.save(model, path)
        inferred: ModelProto = load_model_with_shape_infer(path)
    return inferred


def _part(name: str, model: ModelProto, is_encoder: bool) -> _Part:
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
    for source in _activated(model, between):
        wanted.pop(source, None)
    return _Part(
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


def _activated(model: ModelProto, nodes: Iterable[NodeProto]) -> dict[str, str]:
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
            model.graph.initializer.extend(_int8_table(name, numpy_helper.to_array(table)))
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
    _keep_initializers(model, lambda name: name not in rounded or name in read)


def _int8_table(name: str, values: NDArray[np.float32]) -> list[TensorProto]:
    largest = np.abs(values).max(1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return [
        numpy_helper.from_array(np.rint(values / scales[:, None]).astype(np.int8), f"{name}_int8"),
        numpy_helper.from_array(scales, f"{name}_scales"),
        numpy_helper.from_array(np.array([-1]), f"{name}_last"),
    ]


def _collect(
    stages: list[_Part], heads: list[_Part], rows: Sequence[State]
) -> dict[str, "_Activations"]:
    """Run the float graphs once over all rows and observe every activation."""
    observers = [(_Observer(a), _Observer(b)) for a, b in zip(stages, heads, strict=True)]
    at_once = 1
    for state in rows:
        first, count = 0, len(state[0])
        while first < count:
            chunk = tuple(array[first : first + at_once] for array in state)
            first += len(chunk[0])
            size = len(chunk[0])
            held = 0
            for stage, head in observers:
                chunk, stage_bytes = stage.run(chunk)
                _, head_bytes = head.run(chunk)
                held = max(held, stage_bytes, head_bytes)
            at_once = max(1, CALIBRATION_BYTES * size // max(1, held))
    return {each.part.name: each.seen for pair in observers for each in pair}


class _Activations(NamedTuple):
    """What was seen of a graph's activations."""

    histograms: ActivationHistograms
    means: ChannelMeans


class _Observer:
    """Runs a graph and observes its activations."""

    def __init__(self, part: _Part) -> None:
        self.part = part
        self.seen = _Activations(ActivationHistograms(), ChannelMeans())
        self._averaged = {node.input[0] for node in correctable(part.model, part.weighted)}
        model = ModelProto()
        model.CopyFrom(part.model)
        graph = model.graph
        self._outputs = len(graph.output)
        inputs, outputs = {v.name for v in graph.input}, {v.name for v in graph.output}
        values = {value.name: value for value in graph.value_info}
        graph.output.extend(values[name] for name in part.tensors if name not in inputs | outputs)
        self._graph: Graph = open_graph(model.SerializeToString(), CPU)

    def run(self, state: State) -> tuple[State, int]:
        """Return the outputs and the size in bytes of everything that was held."""
        results = self._graph.run(state)
        values = dict(zip(self._graph.inputs, state, strict=True))
        values |= dict(zip(self._graph.outputs, results, strict=True))
        for name in self.part.tensors:
            self.seen.histograms.add(name, values[name])
        for name in self._averaged:
            self.seen.means.add(name, values[name])
        return tuple(results[: self._outputs]), sum(result.nbytes for result in results)


def _build(
    stages: list[_Part],
    heads: list[_Part],
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
    part: _Part,
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
    part: _Part,
    weighted: list[str],
    ranges: Ranges,
    scales: dict[str, _Scale | None],
) -> ModelProto:
    names = {*weighted, *part.between}
    nodes = [node for node in model.graph.node if node.name in names]
    known = dict(ranges)
    for source, activated in _activated(model, nodes).items():
        known[source] = known[activated]
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
    _keep_initializers(model, lambda name: name in read)
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


def _keep_initializers(model: ModelProto, kept: Callable[[str], bool]) -> None:
    initializers = [tensor for tensor in model.graph.initializer if kept(tensor.name)]
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializers)


def _answers(graphs: Graphs, rows: Sequence[State]) -> list[NDArray[np.float32]]:
    """Return the log-probabilities of every exit, (N, C) each; cells of a grid count as rows."""
    stages = [open_graph(graph.SerializeToString(), CPU) for graph in graphs.stages]
    heads = [open_graph(graph.SerializeToString(), CPU) for graph in graphs.heads]
    answers: list[list[NDArray[np.float32]]] = [[] for _ in heads]
    for batch in rows:
        state = batch
        for stage, head, found in zip(stages, heads, answers, strict=True):
            state = tuple(stage.run(state))
            log_probs = head.run(state)[1]
            found.append(log_probs.reshape(-1, log_probs.shape[-1]))
    return [np.concatenate(found) for found in answers]


def _compare(expected: list[NDArray[np.float32]], found: list[NDArray[np.float32]]) -> Scores:
    scores = []
    for theirs, mine in zip(expected, found, strict=True):
        probs = np.exp(theirs.astype(np.float64))
        best, chosen = theirs.argmax(-1), mine.argmax(-1)
        row = np.arange(len(best))
        scores.append(
            (
                (probs * (theirs - mine)).sum(-1).mean(),
                (best == chosen).mean(),
                (probs[row, best] - probs[row, chosen]).mean(),
            )
        )
    return Scores(*np.array(scores).T)


def _state_type(graph: ModelProto) -> str:
    types = {value.type.tensor_type.elem_type for value in graph.graph.output}
    return "uint8" if TensorProto.UINT8 in types else "float32"


def _rounded(values: NDArray[np.float64] | np.float64) -> Any:
    """Return plain numbers with four significant digits."""
    return np.vectorize(lambda value: float(f"{value:.4g}"))(values).tolist()
