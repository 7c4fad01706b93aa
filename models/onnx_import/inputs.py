"""Give a graph the inputs that a server makes: an image, or token ids and their mask."""

import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from models.onnx_import.graph import replace_nodes
from models.onnx_import.preprocessing import Channels, ImageSettings

log = logging.getLogger(__name__)

ROWS, LENGTH = "rows", "length"
IMAGE, IDS, MASK = "eenet_image", "eenet_ids", "eenet_mask"
LUMA = (0.299, 0.587, 0.114)  # grey of R, G and B, as Pillow converts
WHOLE = (TensorProto.INT64, TensorProto.INT32)
IMAGE_KINDS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8)
RANK_OF_IMAGES, RANK_OF_TEXTS = 4, 2

Task = Literal["image", "text"]


class ImageForm(NamedTuple):
    """What a graph takes: its type, the order of its axes and its sizes, None where they vary."""

    is_uint8: bool
    channels_last: bool
    channels: int
    height: int | None
    width: int | None


def task_of(inputs: Sequence[ValueInfoProto], name: str) -> Task:
    """Tell from a graph's inputs whether it reads images or texts.

    Raises:
        ValueError: If it reads anything else.
    """
    ranks = [len(value.type.tensor_type.shape.dim) for value in inputs]
    kinds = [value.type.tensor_type.elem_type for value in inputs]
    if ranks == [RANK_OF_IMAGES] and kinds[0] in IMAGE_KINDS:
        return "image"
    if 1 <= len(inputs) <= 3 and all(
        rank == RANK_OF_TEXTS and kind in WHOLE for rank, kind in zip(ranks, kinds, strict=True)
    ):
        return "text"
    described = ", ".join(
        f"{value.name} {TensorProto.DataType.Name(kind).lower()} of {rank} dimensions"
        for value, kind, rank in zip(inputs, kinds, ranks, strict=True)
    )
    raise ValueError(
        f"{name} reads {described or 'nothing'}; a network is served that reads one image "
        f"(float32, float16 or uint8 of 4 dimensions), or input_ids with attention_mask and "
        f"token_type_ids (int64 or int32 of 2 dimensions)"
    )


def image_form(value: ValueInfoProto) -> ImageForm:
    """Read the form of an image from a graph's input.

    Raises:
        ValueError: If it has neither 1 nor 3 channels.
    """
    sizes = [_size(value, axis) for axis in range(RANK_OF_IMAGES)]
    channels_last = sizes[1] not in (1, 3) and sizes[3] in (1, 3)
    channels = sizes[3] if channels_last else sizes[1]
    if channels not in (1, 3, None):
        raise ValueError(
            f"the input {value.name!r} has {channels} channels; networks of 1 or 3 are served"
        )
    height, width = sizes[1:3] if channels_last else sizes[2:4]
    is_uint8 = value.type.tensor_type.elem_type == TensorProto.UINT8
    return ImageForm(is_uint8, channels_last, channels or 3, height, width)


def input_size(form: ImageForm, settings: ImageSettings, name: str) -> tuple[int, int]:
    """Return the height and width of a network's input.

    Raises:
        ValueError: If graph and settings disagree, or neither gives them.
    """
    given = (settings.size, settings.size) if isinstance(settings.size, int) else settings.size
    own = (form.height, form.width)
    if given is None and None in own:
        raise ValueError(
            f"{name} takes images of any size; give their size in a file of --preprocessing"
        )
    wanted = given or own
    for mine, theirs in zip(own, wanted, strict=True):
        if mine is not None and mine != theirs:
            raise ValueError(
                f"{name} takes images of {form.width}x{form.height}, but the preprocessing makes "
                f"{wanted[1]}x{wanted[0]}; correct its size"
            )
    assert wanted[0] is not None and wanted[1] is not None, "checked above"
    return wanted[0], wanted[1]


def take_image(
    model: ModelProto, form: ImageForm, size: tuple[int, int], channels: Channels
) -> None:
    """Let a graph read RGB: normalised planes (N, 3, H, W), or pixels (N, H, W, 3) uint8.

    Raises:
        ValueError: If the channels do not fit the graph.
    """
    (before,) = model.graph.input
    if (form.channels == 1) != (channels == "grey"):
        raise ValueError(
            f"the input {before.name!r} has {form.channels} channels, but channels is {channels!r} "
            f"in the preprocessing; give {'grey' if form.channels == 1 else 'RGB or BGR'}"
        )
    if form.is_uint8 and channels == "grey":
        raise ValueError(f"the input {before.name!r} is grey and uint8; export it with float32")
    axis, source, nodes = 3 if form.is_uint8 else 1, IMAGE, list[NodeProto]()

    def then(kind: str, *constants: str, **attributes: Any) -> None:
        nonlocal source
        made = f"{IMAGE}_{len(nodes)}"
        nodes.append(helper.make_node(kind, [source, *constants], [made], **attributes))
        source = made

    if channels == "BGR":
        _add(model, f"{IMAGE}_order", np.array([2, 1, 0]))
        then("Gather", f"{IMAGE}_order", axis=axis)
    elif channels == "grey":
        _add(model, f"{IMAGE}_luma", np.array(LUMA, np.float32).reshape(1, 3, 1, 1))
        then("Conv", f"{IMAGE}_luma")
    if form.channels_last != form.is_uint8:
        then("Transpose", perm=[0, 2, 3, 1] if form.channels_last else [0, 3, 1, 2])
    before_kind = before.type.tensor_type.elem_type
    nodes.append(helper.make_node("Cast", [source], [before.name], to=before_kind))
    height, width = size
    shape: list[int | str] = [ROWS, height, width, 3] if form.is_uint8 else [ROWS, 3, height, width]
    kind = TensorProto.UINT8 if form.is_uint8 else TensorProto.FLOAT
    _put_before(model, nodes, [helper.make_tensor_value_info(IMAGE, kind, shape)])


def take_text(model: ModelProto) -> None:
    """Let a graph read token ids and mask, (N, L) int64 each; its token types become 0."""
    nodes = list[NodeProto]()
    _add(model, f"{IDS}_zero", np.array(0))
    for value, role in zip(model.graph.input, _roles(model.graph.input), strict=True):
        source = IDS if role == "types" else role
        if role == "types":
            nodes.append(helper.make_node("Mul", [IDS, f"{IDS}_zero"], [f"{IDS}_types"]))
            source = f"{IDS}_types"
        kind = value.type.tensor_type.elem_type
        nodes.append(helper.make_node("Cast", [source], [value.name], to=kind))
    shape = [ROWS, LENGTH]
    _put_before(
        model,
        nodes,
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in (IDS, MASK)],
    )
    for node in model.graph.node:  # ids and mask have the same shape, and stages pass on the mask
        if node.op_type == "Shape" and node.input[0] in _copies_of_ids(nodes):
            node.input[0] = MASK


def fixed_length(inputs: Sequence[ValueInfoProto]) -> int | None:
    """Return the only number of tokens that a graph takes; None if it varies."""
    return _size(inputs[0], 1)


def _copies_of_ids(nodes: Sequence[NodeProto]) -> set[str]:
    return {node.output[0] for node in nodes} | {IDS}


def _roles(inputs: Sequence[ValueInfoProto]) -> list[str]:
    """Tell by the names of inputs, else by their order, what each takes."""
    by_name = [_role(value.name.lower()) for value in inputs]
    if None not in by_name and len(set(by_name)) == len(by_name) and IDS in by_name:
        return [role for role in by_name if role is not None]
    roles = [IDS, MASK, "types"][: len(inputs)]
    log.warning(
        "the inputs %s are taken as token ids, mask and token types, in this order",
        ", ".join(value.name for value in inputs),
    )
    return roles


def _role(name: str) -> str | None:
    if "mask" in name:
        return MASK
    if "type" in name or "segment" in name:
        return "types"
    return IDS if "ids" in name or "token" in name else None


def _put_before(
    model: ModelProto, nodes: Sequence[NodeProto], inputs: Sequence[ValueInfoProto]
) -> None:
    for node in nodes:
        node.name = f"eenet_make_{node.output[0]}"
    replace_nodes(model, [*nodes, *model.graph.node])
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    del model.graph.value_info[:]


def _add(model: ModelProto, name: str, values: np.ndarray) -> None:
    model.graph.initializer.append(numpy_helper.from_array(values, name))


def _size(value: ValueInfoProto, axis: int) -> int | None:
    dim = value.type.tensor_type.shape.dim[axis]
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
