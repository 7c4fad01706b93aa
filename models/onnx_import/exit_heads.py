"""The heads of exits that are put onto a given graph: pooled features, then a small classifier."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from models.onnx_import.inputs import MASK
from models.onnx_import.outputs import LOG_PROBS, LOGITS, set_outputs
from models.training.cached_heads import Classifier

FEATURES = "eenet_features"
OPSET, IR = 17, 8


def feature_graph(state: Sequence[ValueInfoProto]) -> ModelProto:
    """Make the graph that pools a state to features, (N, F).

    Planes (N, D, H, W) become the mean and the largest value of each channel, and so do planes with
    channels last. Tokens (N, L, D) become the first token and the mean of those that are no
    padding. Other tensors are flattened.

    Args:
        state: Descriptions of the state's tensors; the first is pooled, the mask is a text's.
    """
    values, *others = state
    has_mask = MASK in [value.name for value in others]
    sizes = [dim.dim_value for dim in values.type.tensor_type.shape.dim]
    if len(sizes) == 4:
        nodes, constants = _pool_planes(values.name, sizes)
    elif len(sizes) == 3:
        nodes, constants = _pool_tokens(values.name, has_mask)
    else:
        nodes, constants = [helper.make_node("Flatten", [values.name], [FEATURES], axis=1)], []
    output = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["rows", "features"])
    return _model(nodes, state, [output], constants)


def head_graph(state: Sequence[ValueInfoProto], classifier: Classifier) -> ModelProto:
    """Make a head: the features of a state and a classifier of them."""
    pooled = feature_graph(state)
    # Standardising is part of the first product: (x - mean) / std @ w = x @ (w / std) - ...
    hidden = classifier.hidden / classifier.std[:, None]
    bias = classifier.hidden_bias - classifier.mean @ hidden
    constants = {
        "hidden": hidden,
        "hidden_bias": bias,
        "output": classifier.output,
        "output_bias": classifier.output_bias,
    }
    nodes = [
        helper.make_node("Gemm", [FEATURES, "hidden", "hidden_bias"], ["hidden_sums"]),
        helper.make_node("Relu", ["hidden_sums"], ["hidden_values"]),
        helper.make_node("Gemm", ["hidden_values", "output", "output_bias"], [LOGITS]),
        helper.make_node("LogSoftmax", [LOGITS], [LOG_PROBS], axis=-1),
    ]
    tensors = [
        numpy_helper.from_array(values.astype(np.float32), name)
        for name, values in constants.items()
    ]
    head = _model([*pooled.graph.node, *nodes], state, [], [*pooled.graph.initializer, *tensors])
    set_outputs(head)
    return head


def _pool_planes(name: str, sizes: Sequence[int]) -> tuple[list[NodeProto], list[onnx.TensorProto]]:
    """Mean and largest value of each channel."""
    _, first, second, third = sizes
    channels_last = first == second != third
    axes = [1, 2] if channels_last else [2, 3]
    return [
        helper.make_node("ReduceMean", [name], ["means"], axes=axes, keepdims=0),
        helper.make_node("ReduceMax", [name], ["highest"], axes=axes, keepdims=0),
        helper.make_node("Concat", ["means", "highest"], [FEATURES], axis=1),
    ], []


def _pool_tokens(name: str, has_mask: bool) -> tuple[list[NodeProto], list[onnx.TensorProto]]:
    """First token, and mean of the tokens that are no padding."""
    constants = [
        numpy_helper.from_array(np.array(0), "first"),
        numpy_helper.from_array(np.array([2]), "last_axis"),
        numpy_helper.from_array(np.array([1]), "token_axis"),
    ]
    nodes = [helper.make_node("Gather", [name, "first"], ["first_token"], axis=1)]
    if has_mask:
        nodes += [
            helper.make_node("Cast", [MASK], ["shares"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["shares", "last_axis"], ["weights"]),
            helper.make_node("Mul", [name, "weights"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "token_axis"], ["sums"], keepdims=0),
            helper.make_node("ReduceSum", ["weights", "token_axis"], ["counts"], keepdims=0),
            helper.make_node("Div", ["sums", "counts"], ["means"]),
        ]
    else:
        nodes.append(helper.make_node("ReduceMean", [name], ["means"], axes=[1], keepdims=0))
    nodes.append(helper.make_node("Concat", ["first_token", "means"], [FEATURES], axis=1))
    return nodes, constants


def _model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    constants: Sequence[onnx.TensorProto],
) -> ModelProto:
    for node in nodes:
        node.name = node.name or f"eenet_head_{node.output[0]}"
    graph = helper.make_graph(list(nodes), "exit", list(inputs), list(outputs), list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
