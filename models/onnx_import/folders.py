"""Read a network whose stages and heads are given as numbered files."""

import re
from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto, TensorProto, ValueInfoProto

from models.onnx_import.reading import ReadModel, read_model

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}  # half precision becomes single
NUMBER = re.compile(r"(\d+)\D*$")


def read_numbered(folder: Path) -> list[ReadModel]:
    """Read the files of a folder in the order of their numbers: `0.onnx`, `stage_1.onnx`, ...

    Raises:
        ValueError: If there are none, the numbers have gaps, or a file is no valid model.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give a folder of 0.onnx, 1.onnx, ...")
    files = sorted(folder.glob("*.onnx"))
    found = [(NUMBER.search(path.stem), path) for path in files]
    numbered = {int(match[1]): path for match, path in found if match is not None}
    first = min(numbered, default=0)
    if not files or len(numbered) != len(files) or first > 1:
        raise ValueError(
            f"{folder} holds {', '.join(path.name for path in files) or 'no .onnx files'}; give "
            f"one file for each exit, numbered from 0: 0.onnx, 1.onnx, ..."
        )
    missing = set(range(first, first + len(files))) - set(numbered)
    if missing:
        raise ValueError(f"{folder} holds no number {min(missing)}; number the files without gaps")
    return [read_model(numbered[number]) for number in sorted(numbered)]


def take_state(model: ModelProto, state: Sequence[ValueInfoProto], name: str) -> None:
    """Let a stage or head read exactly the tensors of a state, in their order.

    Inputs belong to the tensors of the same names; if other names occur, in their order.

    Args:
        model: The graph; it is changed.
        state: Descriptions of the tensors.
        name: Of the graph, for messages.

    Raises:
        ValueError: If inputs and state do not fit together.
    """
    own = {value.name: value for value in model.graph.input}
    names = [value.name for value in state]
    if not set(own) <= set(names):
        if len(own) != len(names):
            raise ValueError(
                f"{name} reads {', '.join(own)}, but the stage before it returns "
                f"{', '.join(names)}; give as many inputs, or the same names"
            )
        names = list(own)
    for place, value in zip(names, state, strict=True):
        mine = own.get(place)
        kinds = set() if mine is None else {_kind(mine), _kind(value)}
        if len(kinds) > 1 and not kinds <= FLOATS:
            raise ValueError(
                f"{name} reads {place!r} as another type than the stage before it returns; export "
                f"both with the same types"
            )
    inputs = [
        own.get(place) or _named(value, place) for place, value in zip(names, state, strict=True)
    ]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def _kind(value: ValueInfoProto) -> int:
    kind: int = value.type.tensor_type.elem_type
    return kind


def _named(value: ValueInfoProto, name: str) -> ValueInfoProto:
    copy = ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    return copy
