"""Find where a graph can be cut: single tensors through which all of its work passes."""

from collections import Counter

from onnx import ModelProto, NodeProto, TensorProto

from models.onnx_import.graph import reads

# Operators that any stage may run again, if all that they read is light: masks, shapes, positions.
CHEAP = frozenset(
    "Abs Add And Cast CastLike Ceil Clip Concat ConstantOfShape CumSum Div Equal Expand EyeLike "
    "Flatten Floor Gather GatherElements GatherND Greater GreaterOrEqual Identity IsInf IsNaN Less "
    "LessOrEqual Log Max Min Mod Mul Neg Not Or Pow Range ReduceMax ReduceMin ReduceProd ReduceSum "
    "Reshape ScatterND Shape Sign Size Slice Split Sqrt Squeeze Sub Tile Transpose Trilu Unsqueeze "
    "Where Xor".split()
)
# Operators with the arithmetic of a network; between two cuts there is at least one.
WORK = frozenset(
    "Attention Conv ConvInteger ConvTranspose DeformConv Einsum FusedConv FusedGemm "
    "FusedMatMul GRU Gemm LSTM MatMul MatMulInteger MatMulNBits MultiHeadAttention QAttention "
    "QLinearConv QGemm QLinearMatMul RNN".split()
)


def light_tensors(model: ModelProto) -> set[str]:
    """Return the tensors that any stage may make again: they need no weights and little work.

    These are constants, whole-number inputs (token ids and mask), the shape of any input, and what
    cheap operators make of these. A table that token ids are looked up in makes no light tensor.
    """
    tables = {t.name for t in model.graph.initializer if len(t.dims) > 1}
    light = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name for value in model.graph.input}
    whole = {
        value.name
        for value in model.graph.input
        if value.type.tensor_type.elem_type in (TensorProto.INT64, TensorProto.INT32)
    }
    light |= whole
    of_input = set(whole)  # light, and not the same for every input
    for node in model.graph.node:
        read = set(reads(node))
        if node.op_type == "Shape" and read <= inputs:
            light.update(node.output)
            continue
        looks_up = node.op_type.startswith("Gather") and node.input[0] in tables
        if node.op_type in CHEAP and read <= light and not (looks_up and read & of_input):
            light.update(node.output)
            if read & of_input:
                of_input.update(node.output)
    return light


def separators(model: ModelProto, light: set[str]) -> list[str]:
    """Return the tensors at which a graph of one output can be cut, in the order of the graph.

    All work after such a tensor reads only it, light tensors and what was made after it. Of several
    with no work in between, such as a convolution and its activation, the last is returned. There
    is work before the first and after the last.

    Args:
        model: A graph without nodes that its output does not need.
        light: As `light_tensors` returns them.
    """
    remaining = Counter(
        name for node in model.graph.node if not is_light(node, light) for name in reads(node)
    )
    live = {value.name for value in model.graph.input} - light
    groups: list[list[str]] = [[]]
    for node in model.graph.node:
        if is_light(node, light):
            continue
        for name in reads(node):
            remaining[name] -= 1
            if not remaining[name]:
                live.discard(name)
        live.update(name for name in node.output if remaining[name])
        if node.op_type in WORK:
            groups.append([])
        if len(live) == 1:
            groups[-1] += live
    return [group[-1] for group in groups[1:-1] if group]


def is_light(node: NodeProto, light: set[str]) -> bool:
    """Return whether a node makes nothing but light tensors."""
    return all(name in light for name in node.output if name)


def work_of(model: ModelProto, nodes: set[int]) -> int:
    """Count the operators with arithmetic among some nodes."""
    return sum(model.graph.node[i].op_type in WORK for i in nodes)


def last_separator(model: ModelProto, output: str, light: set[str]) -> str:
    """Return the last tensor before a classifier's last work; its output if there is none.

    Args:
        model: A graph whose nodes are all needed for `output`.
        output: Logits of the last exit.
        light: As `light_tensors` returns them.
    """
    found = separators(model, light)
    return found[-1] if found else output
