"""Giving graphs the inputs that a server makes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper

from models.onnx_import.inputs import image_form, input_size, take_image, take_text, task_of
from models.onnx_import.preprocessing import ImageSettings
from models.preprocess import ImagePreprocessor
from tests.onnx_models import Maker

FLOAT, HALF, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)


def passing_on(kind: int, shape: Sequence[int | str]) -> ModelProto:
    """A graph that returns the image it reads."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "made",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def taken(model: ModelProto, settings: ImageSettings) -> np.ndarray:
    """What the graph itself reads of `PIXELS`."""
    form = image_form(model.graph.input[0])
    size = input_size(form, settings, "net.onnx")
    take_image(model, form, size, settings.channels)
    more: dict[str, Any] = {"dtype": "uint8", "mean": (0,) * 3, "std": (1,) * 3}
    if not form.is_uint8:
        more = dict(settings.normalisation)
    (batch,) = ImagePreprocessor(*size, **more).batch(PIXELS)
    session = ort.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: batch})
    return np.asarray(found)


@pytest.mark.parametrize("kind", [FLOAT, HALF])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_float_image_in_any_order_of_axes_and_channels(kind: int, channels_last: bool) -> None:
    shape = ["n", 4, 6, 3] if channels_last else ["n", 3, 4, 6]
    settings = ImageSettings(scale=1, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0), channels="BGR")
    found = taken(passing_on(kind, shape), settings).astype(np.float32)
    expected = (PIXELS[..., ::-1] - np.array([1.0, 2.0, 3.0])) / np.array([2.0, 4.0, 8.0])
    if not channels_last:
        expected = expected.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, atol=0.1 if kind == HALF else 1e-3)


@pytest.mark.parametrize("channels_last", [False, True])
def test_pixels(channels_last: bool) -> None:
    shape = ["n", 4, 6, 3] if channels_last else ["n", 3, 4, 6]
    found = taken(passing_on(UINT8, shape), ImageSettings())
    assert np.array_equal(found, PIXELS if channels_last else PIXELS.transpose(0, 3, 1, 2))


def test_grey() -> None:
    settings = ImageSettings(mean=0.5, std=0.25, channels="grey")
    found = taken(passing_on(FLOAT, ["n", 1, 4, 6]), settings)
    grey = PIXELS @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(found[:, 0], (grey - 0.5) / 0.25, atol=1e-4)


def test_a_size_that_varies_must_be_given() -> None:
    model = passing_on(FLOAT, ["n", 3, "h", "w"])
    with pytest.raises(ValueError, match="takes images of any size; give their size"):
        taken(model, ImageSettings())
    assert taken(model, ImageSettings(size=(4, 6), mean=0.0, std=1.0)).shape == (2, 3, 4, 6)


def test_a_size_must_fit_the_graph() -> None:
    with pytest.raises(ValueError, match="takes images of 6x4, but the preprocessing makes 8x8"):
        taken(passing_on(FLOAT, ["n", 3, 4, 6]), ImageSettings(size=8))


def test_channels_must_fit_the_graph() -> None:
    with pytest.raises(ValueError, match="has 1 channels, but channels is 'RGB'"):
        taken(passing_on(FLOAT, ["n", 1, 4, 6]), ImageSettings())


def text_graph(names: Sequence[str], kind: int) -> ModelProto:
    make = Maker()
    for name in names:
        make.node("Cast", name, to=TensorProto.INT64, out=f"{name}_out")
    graph = helper.make_graph(
        make.nodes,
        "made",
        [helper.make_tensor_value_info(name, kind, ["n", "l"]) for name in names],
        [helper.make_tensor_value_info(f"{n}_out", TensorProto.INT64, None) for n in names],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["input_ids", "attention_mask", "token_type_ids"], "imt"),
        (["attention_mask", "token_type_ids", "input_ids"], "mti"),
        (["input_ids"], "i"),
        (["input.1", "input.2"], "im"),
        (["input_ids", "segment_ids"], "it"),
    ],
)
@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
def test_texts_by_the_names_of_inputs_else_by_their_order(
    names: list[str], order: str, kind: int
) -> None:
    model = text_graph(names, kind)
    assert task_of(model.graph.input, "net.onnx") == "text"
    take_text(model)
    ids = np.array([[5, 6, 0]])
    given = {"i": ids, "m": np.array([[1, 1, 0]]), "t": np.zeros_like(ids)}
    session = ort.InferenceSession(model.SerializeToString())
    inputs = [value.name for value in session.get_inputs()]
    found = session.run(None, {inputs[0]: given["i"], inputs[1]: given["m"]})
    for each, letter in zip(found, order, strict=True):
        assert np.array_equal(each, given[letter])


@pytest.mark.parametrize(
    ("names", "kind", "shape"),
    [
        (["a"], FLOAT, ["n", 7]),
        (["a", "b"], FLOAT, ["n", 3, 4, 4]),
        (["a", "b", "c", "d"], TensorProto.INT64, ["n", "l"]),
        ([], FLOAT, []),
    ],
)
def test_other_inputs_are_refused(names: list[str], kind: int, shape: list[int | str]) -> None:
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name in names]
    with pytest.raises(ValueError, match="a network is served that reads one image"):
        task_of(inputs, "net.onnx")
