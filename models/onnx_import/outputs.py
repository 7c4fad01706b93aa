"""Tell what a classifier's output means, and make a head's two outputs of it."""

from enum import Enum

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from models.onnx_import.graph import made_in, remove_unread, replace_nodes

LOGITS, LOG_PROBS = "eenet_logits", "eenet_log_probs"
SUM_TOLERANCE = 2e-3  # of probabilities; half precision rounds them
SMALLEST = 1e-12  # probability whose logarithm is still finite
# Operators that only pass on what they read, between a Softmax and the output.
PASSING = ("Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze")


class Scale(Enum):
    """What an output's numbers are; the value is for messages."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities (softmax already applied)"
    LOG_PROBS = "log-probabilities (log-softmax already applied)"


def scale_of(scores: NDArray[np.floating], name: str) -> Scale:
    """Tell from its values on data what an output holds.

    Args:
        scores: Output of some rows, (N, C).
        name: The output's name, for messages.

    Raises:
        ValueError: If a value is not finite, or each class has a probability of its own.
    """
    values = scores.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(
            f"the output {name!r} is not finite on real inputs; check the preprocessing"
        )
    if values.min() >= -SUM_TOLERANCE and _sum_to_one(values):
        return Scale.PROBABILITIES
    if values.max() <= SUM_TOLERANCE and _sum_to_one(np.exp(values)):
        return Scale.LOG_PROBS
    return Scale.LOGITS


def _sum_to_one(values: NDArray[np.float64]) -> bool:
    return bool(np.abs(values.sum(-1) - 1).max() <= SUM_TOLERANCE)


def as_head(tail: ModelProto, scale: Scale) -> ModelProto:
    """Return a head of logits and log-probabilities, (N, C) each.

    Args:
        tail: Computes one output of any of the scales, (N, C) or (N, C, 1, 1); it is not changed.
        scale: Scale of its output.

    Raises:
        ValueError: If the output is that of a sigmoid: then classes do not exclude each other.
    """
    head = ModelProto()
    head.CopyFrom(tail)
    (output,) = head.graph.output
    name = output.name
    last = _last_work(head, name)
    if last is not None and last.op_type == "Sigmoid":
        raise ValueError(
            f"the output {name!r} is a sigmoid, so each class has a probability of its own; only "
            f"classifiers whose classes exclude each other are served"
        )
    if scale is Scale.PROBABILITIES and last is not None and last.op_type == "Softmax":
        last.op_type = "Identity"  # its input are the logits, exactly
        del last.attribute[:]
        scale = Scale.LOGITS
    nodes = [
        helper.make_node("Cast", [name], [f"{LOGITS}_single"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", [f"{LOGITS}_single"], [f"{LOGITS}_flat"], axis=1),
    ]
    source = f"{LOGITS}_flat"
    if scale is Scale.PROBABILITIES:
        smallest = numpy_helper.from_array(np.array(SMALLEST, np.float32), f"{LOGITS}_smallest")
        head.graph.initializer.append(smallest)
        nodes.append(helper.make_node("Max", [source, smallest.name], [f"{LOGITS}_positive"]))
        nodes.append(helper.make_node("Log", [f"{LOGITS}_positive"], [LOGITS]))
    else:
        nodes.append(helper.make_node("Identity", [source], [LOGITS]))
    nodes.append(helper.make_node("LogSoftmax", [LOGITS], [LOG_PROBS], axis=-1))
    for node in nodes:
        node.name = f"{node.output[0]}_node"
    replace_nodes(head, [*head.graph.node, *nodes])
    set_outputs(head)
    remove_unread(head)
    return head


def set_outputs(head: ModelProto) -> None:
    """Let a graph return the two outputs of a head."""
    del head.graph.output[:]
    head.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "classes"])
        for name in (LOGITS, LOG_PROBS)
    )


def _last_work(model: ModelProto, name: str) -> NodeProto | None:
    """Return the node that makes a tensor, before nodes that only pass it on."""
    made = made_in(model)
    while name in made.by:
        node = made.nodes[made.by[name]]
        if node.op_type not in PASSING:
            return node
        name = node.input[0]
    return None


def log_softmax(scores: NDArray[np.floating], scale: Scale) -> NDArray[np.float64]:
    """Return the log-probabilities of an output, (N, C)."""
    values = scores.reshape(len(scores), -1).astype(np.float64)
    if scale is Scale.PROBABILITIES:
        return np.asarray(np.log(np.maximum(values, SMALLEST)))
    shifted = values - values.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def order_of_classes(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64] | None:
    """Find the order of classes that predictions follow, where it is another than the labels'.

    Args:
        predicted: Class that the network answers for each row, (N,).
        labels: True classes, (N,).
        num_classes: C.

    Returns:
        The label of each of the network's classes, (C,); None if no other order makes more than
        half of the rows right, and a tenth more than the labels' own.
    """
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (predicted, labels), 1)
    order: NDArray[np.int64] = counts.argmax(1)
    if len(set(order.tolist())) < num_classes:
        return None
    right = counts[np.arange(num_classes), order].sum() / len(labels)
    own = counts.diagonal().sum() / len(labels)
    return order if right > 0.5 and right > own + 0.1 else None
