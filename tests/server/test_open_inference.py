"""The Open Inference Protocol: what requests hold, and what is refused before it takes memory."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from models.bundle import ImageInput, TextInput
from server.errors import InvalidContent, MalformedRequest, ServeError
from server.front import FrontModel
from server.open_inference import Tensor, read_call, write_response
from server.tensor_inputs import input_tensors

PIXELS = ImageInput(height=2, width=4, mean=(0, 0, 0), std=(1, 1, 1))
WORDS = TextInput(max_tokens=8, pad_id=0, length_step=8, typical_tokens=8)
IMAGES = cast("FrontModel", SimpleNamespace(name="pets", version="1", reads="image", input=PIXELS))
TEXTS = cast("FrontModel", SimpleNamespace(name="news", version="1", reads="text", input=WORDS))
MOST_ROWS = 5
NUMBERS = np.linspace(-2, 2, 48, dtype=np.float32).reshape(2, 3, 2, 4)


def tensor(**changes: Any) -> dict[str, Any]:
    given = {"name": "image", "shape": [2, 3, 2, 4], "datatype": "FP32", "data": NUMBERS.tolist()}
    return {name: value for name, value in {**given, **changes}.items() if value is not ...}


def body_of(*inputs: Any, **fields: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **fields}).encode()


def read(body: bytes, model: FrontModel = IMAGES, header: str | None = None) -> Any:
    return read_call(body, header, model, MOST_ROWS)


def read_binary(data: bytes, model: FrontModel = IMAGES, **changes: Any) -> Any:
    size = changes.pop("size", len(data))
    given = tensor(data=..., parameters={"binary_data_size": size}, **changes)
    head = body_of(given)
    return read(head + data, model, str(len(head)))


@pytest.mark.parametrize("shape", [NUMBERS.shape, (48,)])
@pytest.mark.parametrize("padding", [0, 20_000])
def test_numbers_in_json_are_flat_or_nested(shape: tuple[int, ...], padding: int) -> None:
    body = body_of(tensor(data=NUMBERS.reshape(shape).tolist())) + b" " * padding
    call = read(body)
    assert call.rows.dtype == np.float32 and np.allclose(call.rows, NUMBERS)
    assert (call.id, call.parameters, call.wanted, call.binary) == (None, {}, None, False)


def test_data_may_come_before_the_shape() -> None:
    given = {"data": NUMBERS.tolist(), **tensor(data=...)}
    assert np.allclose(read(body_of(given)).rows, NUMBERS)


def test_numbers_come_as_bytes_behind_the_json() -> None:
    rows = read_binary(NUMBERS.tobytes()).rows
    assert np.array_equal(rows, NUMBERS) and rows.flags.aligned
    pixels = np.arange(48, dtype=np.uint8).reshape(2, 2, 4, 3)
    rows = read_binary(pixels.tobytes(), datatype="UINT8", shape=[2, 2, 4, 3]).rows
    assert rows.dtype == np.uint8 and np.array_equal(rows, pixels)


@pytest.mark.parametrize("given", [{}, [], [1.0], 5, None, True])
@pytest.mark.parametrize("field", ["name", "datatype"])
@pytest.mark.parametrize("padding", [0, 20_000])
def test_a_name_or_a_datatype_that_is_no_text_is_refused(
    field: str, given: object, padding: int
) -> None:
    body = body_of(tensor(**{field: given})) + b" " * padding
    with pytest.raises(InvalidContent, match=r"has no input|takes image as FP32"):
        read(body)


def elements(*values: bytes) -> bytes:
    return b"".join([len(value).to_bytes(4, "little") + value for value in values])


def test_elements_of_bytes() -> None:
    files = [b"\xff\xd8file", b""]
    call = read_binary(elements(*files), datatype="BYTES", shape=[2])
    assert call.rows == files
    text = {"name": "text", "datatype": "BYTES", "shape": [2]}
    assert read_binary(elements(b"a", "é".encode()), TEXTS, **text).rows == ["a", "é"]
    assert read(body_of({**text, "data": ["a", "b"]}), TEXTS).rows == ["a", "b"]
    column = {**text, "shape": [2, 1], "data": [["a"], ["b"]]}
    assert read(body_of(column), TEXTS).rows == ["a", "b"]


def test_id_parameters_and_outputs() -> None:
    outputs = [
        {"name": "label", "parameters": {"binary_data": False}},
        {"name": "exit"},
        {"name": "probabilities", "parameters": {"classification": 3}},
    ]
    parameters = {"budget_ms": 2, "binary_data_output": True, "content_type": "np"}
    call = read(body_of(tensor(), id="a-1", parameters=parameters, outputs=outputs, model_name="x"))
    assert (call.id, call.parameters, call.binary) == ("a-1", {"budget_ms": 2}, True)
    assert call.wanted == [("label", False, 0), ("exit", True, 0), ("probabilities", True, 3)]


REFUSED: dict[str, tuple[bytes, str]] = {
    "no inputs": (b"{}", "inputs should be a list of one tensor"),
    "two inputs": (body_of(tensor(), tensor()), "2 came"),
    "inputs are numbers": (body_of(1), "inputs should be"),
    "a name": (body_of(tensor(name="x")), "no input 'x'"),
    "a field": (body_of(tensor(shpae=1)), "unknown field of inputs.0 'shpae'"),
    "a field of the body": (body_of(tensor(), input=1), "unknown field 'input'"),
    "a type": (body_of(tensor(datatype="FP64")), "takes image as FP32"),
    "no type": (body_of(tensor(datatype=...)), "takes image as FP32"),
    "a rank": (body_of(tensor(shape=[2, 24])), r"shape \[2, 24\]"),
    "no rank": (body_of(tensor(shape=[])), r"shape \[\]"),
    "a size": (body_of(tensor(shape=[2, 3, 4, 2])), "takes image as FP32"),
    "a negative size": (body_of(tensor(shape=[-1, 3, 2, 4])), "-1 rows"),
    "no rows": (body_of(tensor(shape=[0, 3, 2, 4], data=[])), "0 rows"),
    "many rows": (body_of(tensor(shape=[6, 3, 2, 4])), "5 is the most"),
    "huge": (body_of(tensor(shape=[2**62, 3, 2, 4])), "5 is the most"),
    "overflowing": (body_of(tensor(shape=[2**40, 2**40, 2**40, 4])), "takes image as FP32"),
    "beyond 64 bits": (body_of(tensor(shape=[2**64, 3, 2, 4])), "needs a shape"),
    "endless": (
        b'{"inputs":[{"name":"image","shape":[1' + b"0" * 400 + b"]}]}",
        "needs a shape|beyond",
    ),
    "a real size": (body_of(tensor(shape=[2.0, 3, 2, 4])), "needs a shape"),
    "a true size": (body_of(tensor(shape=[True, 3, 2, 4])), "needs a shape"),
    "no shape": (body_of(tensor(shape=...)), "needs a shape"),
    "too few": (body_of(tensor(data=[1.0] * 47)), "a list holds 47 where 48 are due"),
    "ragged": (body_of(tensor(data=[[[[1] * 4] * 2] * 3, [[[1] * 4] * 2] * 2])), "does not fit"),
    "ragged inside": (body_of(tensor(data=[[[[1] * 4, [1] * 3]] * 3] * 2)), "does not fit"),
    "too deep": (body_of(tensor(data=[[[[[1]] * 4] * 2] * 3] * 2)), "mixes numbers"),
    "texts for numbers": (body_of(tensor(data=["1"] * 48)), "mixes numbers"),
    "truths for numbers": (body_of(tensor(data=[True] * 48)), "mixes numbers"),
    "no list": (body_of(tensor(data=7)), "does not fit"),
    "no data": (body_of(tensor(data=...)), "has no data"),
    "large numbers": (body_of(tensor(data=[1e30] * 48)), "beyond 1000"),
    "beyond float32": (body_of(tensor(data=[1e39] * 48)), "beyond float32"),
    "pixels": (body_of(tensor(datatype="UINT8", shape=[2, 2, 4, 3], data=[256] * 48)), "0 to 255"),
    "halves": (body_of(tensor(datatype="UINT8", shape=[2, 2, 4, 3], data=[1.5] * 48)), "0 to 255"),
    "elements": (body_of(tensor(datatype="BYTES", shape=[2], data=["a"])), "holds 1 elements"),
    "element": (body_of(tensor(datatype="BYTES", shape=[1], data=[1])), "should be a text"),
    "an id": (body_of(tensor(), id=5), "id should be a text"),
    "parameters": (body_of(tensor(), parameters=[1]), "parameters should be an object"),
    "binary": (body_of(tensor(), parameters={"binary_data_output": 1}), "binary_data"),
    "shared": (body_of(tensor(parameters={"shared_memory_region": "r"})), "shared memory"),
    "an output": (body_of(tensor(), outputs=[{"nme": "x"}]), "unknown field of outputs.0"),
    "no output": (body_of(tensor(), outputs=[{}]), "has no name"),
    "outputs": (body_of(tensor(), outputs=["label"]), "outputs should be"),
    "an output twice": (body_of(tensor(), outputs=[{"name": "exit"}] * 2), "twice"),
    "a wish": (
        body_of(tensor(), outputs=[{"name": "exit", "parameters": {"class": 1}}]),
        "unknown parameter",
    ),
    "classes": (
        body_of(tensor(), outputs=[{"name": "exit", "parameters": {"classification": -1}}]),
        "from 0 to 1000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("padding", [0, 20_000])
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(name: str, padding: int) -> None:
    body, sentence = REFUSED[name]
    with pytest.raises(InvalidContent, match=sentence) as refusal:
        read(body + b" " * padding)
    assert "\n" not in refusal.value.detail and len(refusal.value.detail) < 400


@pytest.mark.parametrize(
    ("data", "changes", "kind", "sentence"),
    [
        (NUMBERS.tobytes()[:-1], {}, InvalidContent, "takes 192 bytes; 191 came"),
        (NUMBERS.tobytes(), {"size": 191}, MalformedRequest, "192 bytes follow"),
        (NUMBERS.tobytes(), {"size": -1}, MalformedRequest, "192 bytes follow"),
        (NUMBERS.tobytes(), {"size": True}, InvalidContent, "number of bytes"),
        (np.full(48, np.nan, "f4").tobytes(), {}, InvalidContent, "NaN"),
        (np.full(48, -np.inf, "f4").tobytes(), {}, InvalidContent, "beyond 1000"),
        (elements(b"a")[:3], {"datatype": "BYTES", "shape": [1]}, InvalidContent, "ends within"),
        (elements(b"ab")[:5], {"datatype": "BYTES", "shape": [1]}, InvalidContent, "ends within"),
        (b"\xff" * 8, {"datatype": "BYTES", "shape": [2]}, InvalidContent, "ends within element 0"),
        (elements(b"a") * 3, {"datatype": "BYTES", "shape": [2]}, InvalidContent, "5 bytes after"),
    ],
)
def test_bytes_that_do_not_fit(
    data: bytes, changes: dict[str, Any], kind: type[ServeError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        read_binary(data, **changes)


@pytest.mark.parametrize("length", ["", "0", "-1", "x", "1e2", "99999", "9" * 5000, "٣"])
def test_the_length_of_the_json_lies_within_the_body(length: str) -> None:
    with pytest.raises(MalformedRequest, match="Inference-Header-Content-Length"):
        read(body_of(tensor()), header=length)


def test_bytes_need_the_header_and_are_announced() -> None:
    given = tensor(data=..., parameters={"binary_data_size": 192})
    with pytest.raises(MalformedRequest, match="is missing"):
        read(body_of(given))
    head = body_of(tensor())
    with pytest.raises(MalformedRequest, match="no input has a binary_data_size"):
        read(head + b"abc", header=str(len(head)))
    given["data"] = [1]
    head = body_of(given)
    with pytest.raises(InvalidContent, match="both"):
        read(head + b"a" * 192, header=str(len(head)))


def test_texts_are_utf_8() -> None:
    with pytest.raises(InvalidContent, match="not UTF-8"):
        read_binary(elements(b"\xff"), TEXTS, name="text", datatype="BYTES", shape=[1])


def test_what_a_model_takes() -> None:
    shapes = {each["datatype"]: each["shape"] for each in input_tensors(PIXELS)}
    assert shapes == {"FP32": [-1, 3, 2, 4], "UINT8": [-1, 2, 4, 3], "BYTES": [-1]}
    of_pixels = PIXELS.model_copy(update={"dtype": "uint8"})
    assert [each["datatype"] for each in input_tensors(of_pixels)] == ["UINT8", "BYTES"]
    assert input_tensors(WORDS) == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]


def test_a_response_holds_json_and_then_bytes_in_order() -> None:
    floats = Tensor("p", "FP32", np.array([[1, 2]], "<f4"), (1, 2))
    labels = Tensor("label", "BYTES", ["é", b"b"], (2,))
    ids = Tensor("id", "INT64", np.array([7], "<i8"), (1,))
    content, length = write_response({"id": "x"}, [(floats, True), (ids, False), (labels, True)])
    assert length is not None
    head, rest = json.loads(content[:length]), content[length:]
    assert [each.get("parameters") for each in head["outputs"]] == [
        {"binary_data_size": 8}, None, {"binary_data_size": 11},
    ]  # fmt: skip
    assert head["outputs"][1]["data"] == [7]
    assert rest == np.array([1, 2], "<f4").tobytes() + elements("é".encode(), b"b")
    plain, length = write_response({}, [(floats, False)])
    assert length is None and json.loads(plain)["outputs"][0]["data"] == [1.0, 2.0]
