"""Requests and responses of the Open Inference Protocol v2, in JSON and with binary tensors.

The body is JSON, in which each tensor has its numbers in `data`; or JSON of the length that the
header `Inference-Header-Content-Length` gives, and then the bytes of the tensors one behind the
other, little-endian, each as many as its `binary_data_size` says.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pydantic_core

from server.errors import InvalidContent, MalformedRequest
from server.front import FrontModel
from server.gate import LENGTH_HEADER
from server.nested_json import read_object
from server.tensor_inputs import (
    PREFIX_BYTES,
    Array,
    Rows,
    check_known,
    described_inputs,
    parameters_of,
    read_rows,
)

BINARY = "application/octet-stream"
FIELDS = ("id", "parameters", "inputs", "outputs")
REPEATED = ("model_name", "model_version")  # of the path: KServe's client sends them once more
LONGEST_ID = 1024


class Tensor(NamedTuple):
    """One tensor of a response.

    Attributes:
        name: Its name.
        datatype: As the protocol calls it.
        values: The values; of BYTES a list of texts or bytes.
        shape: Its shape.
    """

    name: str
    datatype: str
    values: Array | Sequence[str | bytes]
    shape: tuple[int, ...]


class Wanted(NamedTuple):
    """An output that a request asks for.

    Attributes:
        name: Its name.
        binary: Whether its bytes follow the JSON.
        classes: Number of best classes to list in its place (Triton's classification); 0: none.
    """

    name: str
    binary: bool
    classes: int = 0


class InferenceCall(NamedTuple):
    """A request that was read.

    Attributes:
        id: The client's name for it, if any.
        parameters: The options.
        rows: N samples.
        wanted: Outputs to answer with; None: those that are not on demand.
        binary: Whether outputs that say nothing else come as bytes.
    """

    id: str | None
    parameters: dict[str, Any]
    rows: Rows
    wanted: list[Wanted] | None
    binary: bool


def read_call(
    body: bytes, header_length: str | None, model: FrontModel, most_rows: int
) -> InferenceCall:
    """Read a request.

    Args:
        body: All of it.
        header_length: Value of `Inference-Header-Content-Length`; None: all of the body is JSON.
        model: The model that the path names.
        most_rows: Most rows of a request.

    Raises:
        MalformedRequest: If it is not JSON, or the lengths contradict each other.
        InvalidContent: If a field, a shape, a type or a number of bytes does not fit.
        TooComplex: If it holds more values than any honest request.
    """
    length = _header_length(header_length, len(body))
    given = read_object(memoryview(body)[:length] if length < len(body) else body)
    check_known(given, (*FIELDS, *REPEATED), "field")
    if given.get("model_version") not in (None, "", model.version):
        raise InvalidContent(
            f"model_version is {given['model_version']!r:.80}, and the path means version "
            f"{model.version}; name the version in the path"
        )
    call_id = given.get("id")
    if not isinstance(call_id, str | None) or len(call_id or "") > LONGEST_ID:
        raise InvalidContent(f"id should be a text of at most {LONGEST_ID} characters")
    parameters = parameters_of(given, "parameters")
    wanted = _wanted(given.get("outputs"), binary := parameters.pop("binary_data_output", False))
    if not isinstance(binary, bool):
        raise InvalidContent("parameters.binary_data_output should be true or false")
    inputs = given.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        found = len(inputs) if isinstance(inputs, list) else 0
        raise InvalidContent(
            f"inputs should be a list of one tensor, {model.reads}; {found} came: send "
            f"{described_inputs(model)}"
        )
    rows = read_rows(inputs[0], memoryview(body)[length:], header_length is None, model, most_rows)
    return InferenceCall(call_id, parameters, rows, wanted, binary)


def write_response(
    head: Mapping[str, Any], tensors: Sequence[tuple[Tensor, bool]]
) -> tuple[bytes, int | None]:
    """Return the body of a response, and the length of its JSON if bytes follow it.

    Args:
        head: All fields but the outputs.
        tensors: The outputs, and whether each goes as bytes.
    """
    outputs, parts = [], []
    for tensor, binary in tensors:
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if binary:
            parts.append(_bytes_of(tensor))
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        elif isinstance(tensor.values, np.ndarray):
            output["data"] = tensor.values.reshape(-1).tolist()
        else:
            output["data"] = [
                each if isinstance(each, str) else base64.b64encode(each).decode()
                for each in tensor.values
            ]
        outputs.append(output)
    content = pydantic_core.to_json({**head, "outputs": outputs})
    return b"".join([content, *parts]), len(content) if parts else None


def _header_length(given: str | None, body_bytes: int) -> int:
    if given is None:
        return body_bytes
    if not given.isascii() or not given.isdigit() or not 0 < int(given[:20]) <= body_bytes:
        raise MalformedRequest(
            f"{LENGTH_HEADER} is {given!r:.40}, and the body has {body_bytes} bytes; give the "
            f"number of bytes of its JSON"
        )
    return int(given)


def _wanted(given: Any, binary: Any) -> list[Wanted] | None:
    if given is None or given == []:
        return None
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise InvalidContent("outputs should be a list of objects with a name each")
    wanted: list[Wanted] = []
    for place, output in enumerate(given):
        where = f"outputs.{place}"
        name, parameters = output.get("name"), parameters_of(output, f"{where}.parameters")
        check_known(output, ("name", "parameters"), f"field of {where}")
        check_known(parameters, ("binary_data", "classification"), f"parameter of {where}")
        if not isinstance(name, str):
            raise InvalidContent(f"{where} has no name")
        if name in [each.name for each in wanted]:
            raise InvalidContent(f"outputs name {name!r:.80} twice; name it once")
        as_bytes = parameters.get("binary_data", binary)
        if not isinstance(as_bytes, bool):
            raise InvalidContent(f"{where}.parameters.binary_data should be true or false")
        classes = parameters.get("classification", 0)
        if type(classes) is not int or not 0 <= classes <= 1000:
            raise InvalidContent(f"{where}.parameters.classification should be from 0 to 1000")
        wanted.append(Wanted(name, as_bytes, classes))
    return wanted


def _bytes_of(tensor: Tensor) -> bytes:
    if isinstance(tensor.values, np.ndarray):
        return np.ascontiguousarray(tensor.values).tobytes()
    parts: list[bytes] = []
    for value in tensor.values:
        encoded = value.encode() if isinstance(value, str) else value
        parts += [len(encoded).to_bytes(PREFIX_BYTES, "little"), encoded]
    return b"".join(parts)
