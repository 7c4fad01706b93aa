"""Graphs of a fixed number of rows take any number of them."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto

from models.onnx_import.batch_axis import fixed_rows, free_rows
from models.onnx_import.reading import read_model
from models.onnx_import.single_precision import to_single_precision
from tests.onnx_models import CHANNELS, SIDE, Maker, exits_net, image_input, save


def tokens_net(rows: int) -> ModelProto:
    """As image transformers are exported: a class token of one row, and fixed shapes."""
    make = Maker()
    planes = make.stem("input")
    shape = make.constant([rows, CHANNELS, SIDE * SIDE], np.int64)
    tokens = make.node("Transpose", make.node("Reshape", planes, shape), perm=[0, 2, 1])
    first = make.constant(make.random.normal(size=(1, 1, CHANNELS)))
    repeated = make.node("Expand", first, make.constant([rows, 1, CHANNELS], np.int64))
    joined = make.node("Concat", first if rows == 1 else repeated, tokens, axis=1)
    flat = make.node("Reshape", joined, make.constant([-1, CHANNELS], np.int64))
    mixed = make.node("MatMul", flat, make.constant(make.random.normal(size=(CHANNELS, 3))))
    back = make.node("Reshape", mixed, make.constant([rows, SIDE * SIDE + 1, 3], np.int64))
    out = make.node("ReduceMean", back, axes=[1], keepdims=0, out="scores")
    return make.model(image_input(rows), {out: [rows, 3]})


def run(model: ModelProto, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {"input": images})[0])


def test_one_row_becomes_any_number() -> None:
    given, model = tokens_net(1), tokens_net(1)
    assert fixed_rows(model) == 1
    free_rows(model, 1)
    assert fixed_rows(model) is None
    images = np.random.default_rng(0).normal(size=(3, 3, SIDE, SIDE)).astype(np.float32)
    alone = [run(given, images[row : row + 1]) for row in range(3)]
    np.testing.assert_allclose(run(model, images), np.concatenate(alone), atol=1e-5)


def test_an_old_opset_is_raised_and_every_node_has_a_name(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = save(exits_net(2, opset=11), tmp_path_factory.mktemp("old") / "old.onnx")
    given, model = read_model(path)
    assert given.opset_import[0].version == 11 and model.opset_import[0].version == 17
    names = [node.name for node in model.graph.node]
    assert all(names) and len(set(names)) == len(names)
    images = np.random.default_rng(0).normal(size=(3, 3, SIDE, SIDE)).astype(np.float32)
    np.testing.assert_allclose(run(model, images), run(given, images), atol=1e-5)


def test_half_precision_becomes_single_precision_of_the_same_weights() -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = exits_net(2)
    half = convert_float_to_float16(model)
    to_single_precision(half)
    images = np.random.default_rng(0).normal(size=(3, 3, SIDE, SIDE)).astype(np.float32)
    np.testing.assert_allclose(run(half, images), run(model, images), atol=0.05)
    assert {tensor.data_type for tensor in half.graph.initializer} == {1}
