"""Shortcuts that subsample and pad with zeros (He et al. 2016, option A), as convolutions.

ONNX Runtime's integer kernels keep channels last. It cannot carry that order past a slice or a pad,
so beside one it transposes before and after every convolution of the stage. A 1x1 convolution whose
kernel picks channels has the same values, and leaves the whole stage in one order.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

CHANNELS = 1
PLANE = (2, 3)  # height and width
RANK = 4  # of a batch of images
ALL = 2**31 - 1  # the least end of a slice that means "to the end", whatever the size


def replace_shortcuts(model: ModelProto) -> None:
    """Replace every pad of channels, and the strided slices before it, by one convolution.

    Args:
        model: A graph whose tensors have known shapes; it is changed.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    channels = {
        value.name: value.type.tensor_type.shape.dim[CHANNELS].dim_value
        for value in (*graph.input, *graph.value_info)
        if len(value.type.tensor_type.shape.dim) == RANK
    }

    def given(node: NodeProto, place: int) -> NDArray[Any] | None:
        """Return an input of a node that is a constant, or None."""
        name = node.input[place] if place < len(node.input) else ""
        return numpy_helper.to_array(constants[name]) if name in constants else None

    for place, node in enumerate(graph.node):
        padding = _padded_channels(node, given(node, 1), given(node, 2))
        if padding is None:
            continue
        source, strides = node.input[0], dict.fromkeys(PLANE, 1)
        while (slice_ := made_by.get(source)) is not None and slice_.op_type == "Slice":
            moving = _steps(*(given(slice_, i) for i in range(1, 5)))
            if moving is None:
                break
            for axis, step in moving.items():
                strides[axis] *= step
            source = slice_.input[0]
        if channels.get(source):
            kernel = _picking(channels[source], *padding)
            name = f"{node.output[0]}_kernel"
            graph.initializer.append(numpy_helper.from_array(kernel, name))
            steps = [strides[axis] for axis in PLANE]
            conv = helper.make_node("Conv", [source, name], node.output, strides=steps)
            conv.name = node.name
            graph.node[place].CopyFrom(conv)
    _remove_unread(model)


def _remove_unread(model: ModelProto) -> None:
    """Remove the nodes that nothing reads any more; nodes come after what they read."""
    read = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node[:]):
        if read.isdisjoint(node.output):
            model.graph.node.remove(node)
        else:
            read.update(node.input)


def _padded_channels(
    node: NodeProto, pads: NDArray[Any] | None, value: NDArray[Any] | None
) -> tuple[int, int] | None:
    """Return how many channels of zeros a node adds before and after; None if it does not."""
    if node.op_type != "Pad" or pads is None or len(pads) != 2 * RANK or len(node.input) > 3:
        return None
    modes = [helper.get_attribute_value(each) for each in node.attribute if each.name == "mode"]
    adds_zeros = len(node.input) == 2 or (value is not None and not value.any())
    if modes not in ([], [b"constant"]) or not adds_zeros:
        return None
    before, after = pads[CHANNELS], pads[CHANNELS + RANK]
    others = np.delete(pads, [CHANNELS, CHANNELS + RANK])
    return None if others.any() or min(before, after) < 0 else (int(before), int(after))


def _steps(
    starts: NDArray[Any] | None,
    ends: NDArray[Any] | None,
    axes: NDArray[Any] | None,
    steps: NDArray[Any] | None,
) -> dict[int, int] | None:
    """Return a slice's step along each axis of the plane; None if it drops more than that."""
    if starts is None or ends is None or axes is None or steps is None:
        return None
    if starts.any() or ends.min() < ALL or steps.min() < 1:
        return None
    found = dict(zip(axes.tolist(), steps.tolist(), strict=True))
    moving = {axis: step for axis, step in found.items() if step > 1}
    return moving if set(moving) <= set(PLANE) else None


def _picking(channels: int, before: int, after: int) -> NDArray[np.float32]:
    """Return a 1x1 kernel that copies channels between others of zeros."""
    kernel = np.zeros((before + channels + after, channels, 1, 1), np.float32)
    kernel[before : before + channels, :, 0, 0] = np.eye(channels, dtype=np.float32)
    return kernel
