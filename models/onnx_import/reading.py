"""Read an ONNX file that comes from outside, check it, and bring it into one plain form.

Nothing of the file is executed here: it is parsed, checked and rewritten.
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, inliner, numpy_helper, version_converter

from models.onnx_file import refuse_external_data
from models.onnx_import.graph import graphs_inside, remove_unread, replace_nodes
from models.onnx_import.single_precision import to_single_precision

STANDARD_DOMAINS = ("", "ai.onnx", "com.microsoft")
OLDEST_OPSET = 7  # the oldest that ONNX Runtime promises to run
WANTED_OPSET = 17  # quantising per channel needs 13
OLDEST_IR = 8
LFS_POINTER = b"version https://git-lfs"
STATEFUL = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial")


class ReadModel(NamedTuple):
    """A model as it was given, and in the form in which it is taken apart.

    Attributes:
        given: Without functions, Constant nodes, and constants among its inputs; else unchanged.
        model: The same in single precision, in a newer opset if onnx can convert it, without parts
            that no output needs, and with a unique name for every node.
    """

    given: ModelProto
    model: ModelProto


def read_model(path: Path) -> ReadModel:
    """Read and check a model.

    Raises:
        ValueError: If the file is no ONNX model, keeps weights in other files, or has operators
            that ONNX Runtime does not bring along; the message names the file.
    """
    model = _parse(path)
    model = inliner.inline_local_functions(model, False) if model.functions else model
    _check_operators(model, path)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # onnx raises types of its own
        first, *_ = str(error).splitlines()
        raise ValueError(f"{path} is not a valid ONNX model: {first}") from error
    model.ir_version = max(model.ir_version, OLDEST_IR)
    _plain(model)
    given = ModelProto()
    given.CopyFrom(model)
    to_single_precision(model)
    model = _upgraded(model)
    for element in (model, model.graph, *model.graph.node, *model.graph.value_info):
        del element.metadata_props[:]  # paths and stack traces of the machine that exported it
    del model.training_info[:]
    _name_nodes(model)
    remove_unread(model)
    return ReadModel(given, model)


def _parse(path: Path) -> ModelProto:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give an .onnx file")
    content = path.read_bytes()
    if content.startswith(LFS_POINTER):
        raise ValueError(f"{path} is a pointer of Git LFS, not the model; run git lfs pull")
    refuse_external_data(path)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf raises types of its own
        raise ValueError(f"{path} is not an ONNX file: {error}") from error
    if not model.graph.node:
        raise ValueError(f"{path} is not an ONNX model: it has no nodes")
    return model


def _check_operators(model: ModelProto, path: Path) -> None:
    opsets = {each.domain: each.version for each in model.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx", OLDEST_OPSET))
    if not OLDEST_OPSET <= opset <= onnx.defs.onnx_opset_version():
        raise ValueError(
            f"{path} has opset {opset}; export it with one from {OLDEST_OPSET} to "
            f"{onnx.defs.onnx_opset_version()}"
        )
    waiting = list(model.graph.node)
    while waiting:
        node = waiting.pop()
        waiting += itertools.chain.from_iterable(graph.node for graph in graphs_inside(node))
        if node.domain not in STANDARD_DOMAINS:
            raise ValueError(
                f"{path} has the operator {node.domain}::{node.op_type}, which ONNX Runtime does "
                f"not bring along; export the network with standard operators only"
            )
        if node.op_type in STATEFUL:
            raise ValueError(
                f"{path} has the operator {node.op_type}, so its answers are random; export the "
                f"network in evaluation mode"
            )


def _plain(model: ModelProto) -> None:
    """Turn Constant nodes into constants, and take constants out of the inputs."""
    graph, kept = model.graph, list[NodeProto]()
    for node in graph.node:
        (value,) = node.attribute if node.op_type == "Constant" else (None,)
        if value is None or value.name.startswith("sparse"):
            kept.append(node)
            continue
        held = helper.get_attribute_value(value)
        tensor = held if value.name == "value" else _tensor_of(value.name, held)
        named = onnx.TensorProto()
        named.CopyFrom(tensor)
        named.name = node.output[0]
        graph.initializer.append(named)
    replace_nodes(model, kept)
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)
    made = {name for node in kept for name in node.output}
    for value in graph.output:  # an output that is a constant or an input
        if value.name not in made:
            raise ValueError(f"the output {value.name!r} depends on no input")


def _tensor_of(kind: str, value: object) -> onnx.TensorProto:
    types = {"value_int": np.int64, "value_ints": np.int64}
    if kind.startswith("value_string"):
        return helper.make_tensor("", onnx.TensorProto.STRING, [len(value)], value)  # type: ignore[arg-type]
    return numpy_helper.from_array(np.array(value, types.get(kind, np.float32)))


def _upgraded(model: ModelProto) -> ModelProto:
    """Return the model in a newer opset if onnx can convert it, else as it is."""
    opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if opset >= WANTED_OPSET:
        return model
    before = [value.name for value in (*model.graph.input, *model.graph.output)]
    try:
        converted = version_converter.convert_version(model, WANTED_OPSET)
        _plain(converted)
        onnx.checker.check_model(converted)
    except Exception:  # onnx converts most operators; the others run in their own opset
        return model
    after = [value.name for value in (*converted.graph.input, *converted.graph.output)]
    return converted if after == before else model


def _name_nodes(model: ModelProto) -> None:
    """Give every node a name of its own, which quantising needs."""
    taken = set[str]()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
            while node.name in taken:
                node.name += "_"
        taken.add(node.name)
