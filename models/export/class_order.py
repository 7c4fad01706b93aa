"""Give an exit head another order of classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

CLASS_AXIS = 1
SUFFIX = "_in_old_order"


def reorder_classes(source: Path, target: Path, order: Sequence[int]) -> None:
    """Write a head whose outputs have their classes in another order.

    Args:
        source: Graph of an exit head of a classifier, with logits and log-probabilities.
        target: The new graph.
        order: For each class of the new head, its index in the old one.
    """
    model = onnx.load(source)
    graph = model.graph
    outputs = [output.name for output in graph.output]
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name in outputs:
                    names[place] = name + SUFFIX
    index = f"class_order{SUFFIX}"
    graph.initializer.append(numpy_helper.from_array(np.array(order, np.int64), index))
    for name in outputs:
        gather = helper.make_node("Gather", [name + SUFFIX, index], [name], axis=CLASS_AXIS)
        graph.node.append(gather)
    onnx.checker.check_model(model, full_check=True)
    target.write_bytes(model.SerializeToString())
