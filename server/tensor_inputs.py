"""Input tensors of the Open Inference Protocol: what a model takes, and reading one.

A shape is checked before the data is touched, so that nothing takes memory that does not fit.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import ImageInput, TextInput
from server.errors import InvalidContent, MalformedRequest
from server.front import FrontModel
from server.gate import LENGTH_HEADER
from server.nested_json import number_array
from server.spelling import did_you_mean

# Parameters of clients' own codecs, which change nothing here.
FOREIGN = ("content_type", "headers")
MOST_LEVEL = 1000.0  # of a normalised pixel, far beyond what any mean and deviation give
ITEM_BYTES = {"FP32": 4, "UINT8": 1}
PREFIX_BYTES = 4  # before each element of BYTES: its length

Array = NDArray[Any]
Rows = Array | list[bytes] | list[str]
"""N samples: images (N, H, W, 3) or (N, 3, H, W) as an array, or a list of files, of files in
base64, or of texts."""


def input_tensors(taken: ImageInput | TextInput) -> list[dict[str, Any]]:
    """Return the tensors that a model takes, one of them a request; N is -1."""
    if isinstance(taken, TextInput):
        return [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    height, width = taken.height, taken.width
    planes = {"name": "image", "datatype": "FP32", "shape": [-1, 3, height, width]}
    pixels = {"name": "image", "datatype": "UINT8", "shape": [-1, height, width, 3]}
    files = {"name": "image", "datatype": "BYTES", "shape": [-1]}
    return [planes, pixels, files] if taken.dtype == "float32" else [pixels, files]


def described_inputs(model: FrontModel) -> str:
    """Say which tensors a model takes."""
    kinds = []
    for tensor in input_tensors(model.input):
        shape = ",".join(["N", *map(str, tensor["shape"][1:])])
        kinds.append(f"{tensor['datatype']} [{shape}]")
    return f"{model.reads} as {' or '.join(kinds)}"


def read_rows(
    tensor: dict[str, Any], rest: memoryview, all_json: bool, model: FrontModel, most_rows: int
) -> Rows:
    """Read the input tensor.

    Args:
        tensor: The object in `inputs`.
        rest: The bytes behind the JSON.
        all_json: Whether no header told the length of the JSON.
        model: Reads it.
        most_rows: Most rows.

    Raises:
        MalformedRequest: If the number of bytes contradicts `binary_data_size`.
        InvalidContent: If name, shape, type or data do not fit.
    """
    name = tensor.get("name")
    check_known(tensor, ("name", "shape", "datatype", "parameters", "data"), "field of inputs.0")
    if not isinstance(name, str) or name != model.reads:
        raise InvalidContent(
            f"{model.name} has no input {name!r:.80}; send {described_inputs(model)}"
        )
    datatype, shape = tensor.get("datatype"), _shape(tensor, model, most_rows)
    parameters = parameters_of(tensor, "inputs.0.parameters")
    check_known(parameters, ("binary_data_size",), "parameter of inputs.0")
    size = parameters.get("binary_data_size")
    if size is None:
        if len(rest):
            raise MalformedRequest(
                f"{len(rest)} bytes follow the JSON, and no input has a binary_data_size"
            )
        if "data" not in tensor:
            raise InvalidContent(f"input {name!r} has no data")
        if datatype == "BYTES":
            return _texts(tensor["data"], shape, name)
        return _numbers(tensor["data"], datatype == "UINT8", shape, name)
    if "data" in tensor:
        raise InvalidContent(f"input {name!r} has both data and binary_data_size; send one")
    if all_json:
        raise MalformedRequest(
            f"input {name!r} has a binary_data_size, but the header {LENGTH_HEADER} is missing"
        )
    if not _is_size(size):
        raise InvalidContent(f"binary_data_size of input {name!r} should be a number of bytes")
    if size != len(rest):
        raise MalformedRequest(
            f"input {name!r} has a binary_data_size of {size}, and {len(rest)} bytes follow "
            f"the JSON"
        )
    if datatype == "BYTES":
        return _elements(rest, shape[0], model, name)
    return _binary(rest, datatype == "UINT8", shape, name)


def _shape(tensor: Mapping[str, Any], model: FrontModel, most_rows: int) -> tuple[int, ...]:
    """Return the shape of the input once it is one that the model takes."""
    given, datatype = tensor.get("shape"), tensor.get("datatype")
    if not isinstance(given, list) or not all(_is_size(each) for each in given):
        raise InvalidContent(f"input {model.reads!r} needs a shape, a list of integers")
    inner = {each["datatype"]: each["shape"][1:] for each in input_tensors(model.input)}
    known = inner.get(datatype) if isinstance(datatype, str) else None
    fits = known is not None and (given[1:] == known or (datatype == "BYTES" and given[1:] == [1]))
    if not given or not fits:
        raise InvalidContent(
            f"input {model.reads!r} is {datatype!r:.40} of shape {given!r:.80}; {model.name} takes "
            f"{described_inputs(model)}"
        )
    if given[0] < 1:
        raise InvalidContent(f"input {model.reads!r} has {given[0]!r:.40} rows; send at least one")
    if given[0] > most_rows:
        raise InvalidContent(
            f"input {model.reads!r} has {given[0]!r:.40} rows; {most_rows} is the most, split it"
        )
    return tuple(given)


def _is_size(given: Any) -> bool:
    """Whether a value is an integer that a shape may hold; longer ones cannot even be shown."""
    return type(given) is int and -(2**63) <= given < 2**63


def _binary(data: memoryview, pixels: bool, shape: tuple[int, ...], name: str) -> Array:
    item_bytes = ITEM_BYTES["UINT8" if pixels else "FP32"]
    expected = math.prod(shape) * item_bytes
    if len(data) != expected:
        raise InvalidContent(
            f"input {name!r} of shape {list(shape)} takes {expected} bytes; {len(data)} came"
        )
    array = np.frombuffer(data, np.uint8 if pixels else "<f4").reshape(shape)
    if not pixels:
        _check_levels(array, name)
    return array if array.flags.aligned else array.copy()


def _check_levels(array: Array, name: str) -> None:
    if not (np.abs(array).max() <= MOST_LEVEL):  # NaN is no smaller than anything
        raise InvalidContent(
            f"input {name!r} holds NaN or values beyond {MOST_LEVEL:g}; FP32 takes normalised "
            f"pixels, send others as UINT8"
        )


def _numbers(data: Any, pixels: bool, shape: tuple[int, ...], name: str) -> Array:
    leaves: list[Array] = []
    count = math.prod(shape)
    if isinstance(data, np.ndarray) or (isinstance(data, list) and not _is_nested(data)):
        _collect(data, (count,), leaves, name)
    else:
        _collect(data, shape, leaves, name)
    array = np.concatenate(leaves).reshape(shape)
    if not pixels:
        _check_levels(array, name)
        return array
    if array.min() < 0 or array.max() > 255 or (array != np.floor(array)).any():
        raise InvalidContent(f"input {name!r} is UINT8 and holds values other than 0 to 255")
    return array.astype(np.uint8)


def _is_nested(data: list[Any]) -> bool:
    return bool(data) and isinstance(data[0], list | np.ndarray)


def _collect(data: Any, shape: tuple[int, ...], leaves: list[Array], name: str) -> None:
    """Collect the innermost lists of nested data that has a shape."""
    if not isinstance(data, list | np.ndarray) or len(data) != shape[0]:
        found = len(data) if isinstance(data, list | np.ndarray) else "something else"
        raise InvalidContent(
            f"data of input {name!r} does not fit its shape: a list holds {found} where "
            f"{shape[0]} are due; send it flat, or nested as the shape says"
        )
    if len(shape) == 1:
        if isinstance(data, list):
            data = number_array(data, f"data of input {name!r}")
        leaves.append(data)
        return
    for part in data:
        _collect(part, shape[1:], leaves, name)


def _texts(data: Any, shape: tuple[int, ...], name: str) -> list[str]:
    if isinstance(data, list) and len(shape) > 1 and _is_nested(data):
        data = [item[0] if isinstance(item, list) and len(item) == 1 else None for item in data]
    if not isinstance(data, list) or len(data) != shape[0]:
        found = len(data) if isinstance(data, list | np.ndarray) else "no list"
        raise InvalidContent(
            f"data of input {name!r} holds {found} elements; its shape says {shape[0]}"
        )
    if not all(isinstance(each, str) for each in data):
        raise InvalidContent(f"data of input {name!r} is BYTES; each element should be a text")
    return data


def _elements(data: memoryview, rows: int, model: FrontModel, name: str) -> list[bytes] | list[str]:
    """Take the elements of BYTES apart; each has its length before it."""
    elements: list[bytes] = []
    at = 0
    for _ in range(rows):
        size = int.from_bytes(data[at : at + PREFIX_BYTES], "little")
        end = at + PREFIX_BYTES + size
        if end > len(data):
            raise InvalidContent(
                f"input {name!r} ends within element {len(elements)} of {rows}; send the length of "
                f"each in four bytes before it"
            )
        elements.append(bytes(data[at + PREFIX_BYTES : end]))
        at = end
    if at != len(data):
        raise InvalidContent(f"input {name!r} has {len(data) - at} bytes after its {rows} elements")
    if model.reads == "image":
        return elements
    try:
        return [each.decode() for each in elements]
    except UnicodeDecodeError as error:
        raise InvalidContent(f"an element of input {name!r} is not UTF-8; send UTF-8") from error


def check_known(given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Check the names of fields or parameters.

    Raises:
        InvalidContent: If one is unknown.
    """
    for name in given:
        if name not in known:
            raise InvalidContent(f"unknown {what} {name!r:.80}{did_you_mean(name, known)}")


def parameters_of(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the `parameters` of an object, without those that mean nothing here.

    Raises:
        InvalidContent: If they are no object, or ask for shared memory.
    """
    parameters = given.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidContent(f"{where} should be an object")
    if any(name.startswith("shared_memory") for name in parameters):
        raise InvalidContent(f"{where}: shared memory is not taken; send the data itself")
    return {name: value for name, value in parameters.items() if name not in FOREIGN}
