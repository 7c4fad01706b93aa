"""Cutting graphs into stages and heads."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto

from models.backend import State
from models.onnx_import.batch_axis import forget_shapes
from models.onnx_import.inputs import IMAGE
from models.onnx_import.parts import CannotCut, Parts, Whole, cut_at, cut_exits
from models.onnx_import.separators import WORK, light_tensors, separators
from tests.onnx_models import CHANNELS, SIDE, Maker, exits_net, image_input, plain_net


def run(model: ModelProto, inputs: State) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found: list[np.ndarray] = session.run(None, dict(zip(names, inputs, strict=True)))
    return found


def whole_of(model: ModelProto) -> Whole:
    """Read images under the name that an adapted graph has."""
    (own,) = model.graph.input
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == own.name:
                node.input[place] = IMAGE
    own.name = IMAGE
    forget_shapes(model)
    random = np.random.default_rng(0)
    few, many = (random.normal(size=(n, 3, SIDE, SIDE)).astype(np.float32) for n in (2, 3))
    return Whole(model, (few,), (many,))


def answers(parts: Parts, inputs: State) -> list[np.ndarray]:
    state, found = inputs, []
    for stage, tail in zip(parts.stages, parts.tails, strict=True):
        state = tuple(run(stage, state))
        found += [] if tail is None else run(tail, state)
    return found


def work(model: ModelProto) -> int:
    return sum(node.op_type in WORK for node in model.graph.node)


def test_exits_that_are_outputs_are_cut_without_computing_anything_twice() -> None:
    whole = whole_of(exits_net())
    parts = cut_exits(whole, ["exit_0", "exit_1", "exit_2"])
    assert [len(state) for state in parts.states] == [1, 1, 1]
    expected = run(whole.model, whole.large)
    for mine, theirs in zip(answers(parts, whole.large), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    tails = [tail for tail in parts.tails if tail is not None]
    assert sum(map(work, parts.stages)) + sum(map(work, tails)) == work(whole.model)


def multi_scale_net() -> ModelProto:
    """Two scales, of which both exits read one, and the second stage both."""
    make = Maker()
    fine = make.block(make.stem("input"))
    coarse = make.node("MaxPool", make.block(fine), kernel_shape=[2, 2], strides=[2, 2])
    first = make.classify(coarse, "early")
    more = make.node("MaxPool", make.block(fine), kernel_shape=[2, 2], strides=[2, 2])
    second = make.classify(make.block(make.node("Add", coarse, more)), "late")
    return make.model(image_input(), {first: ["batch", 3], second: ["batch", 3]})


def test_stages_that_share_work_pass_on_several_tensors() -> None:
    whole = whole_of(multi_scale_net())
    parts = cut_exits(whole, ["early", "late"])
    assert len(parts.states[0]) == 2  # both scales
    for mine, theirs in zip(
        answers(parts, whole.large), run(whole.model, whole.large), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    tails = [tail for tail in parts.tails if tail is not None]
    assert sum(map(work, parts.stages)) + sum(map(work, tails)) == work(whole.model)


def test_separators_are_the_ends_of_blocks() -> None:
    whole = whole_of(plain_net(blocks=4))
    found = separators(whole.model, light_tensors(whole.model))
    made_by = {node.output[0]: node.op_type for node in whole.model.graph.node}
    # The stem's activation, the sums of four blocks; the last is pooled before the classifier.
    assert [made_by[name] for name in found] == ["Relu", "Add", "Add", "Add", "Flatten"]


def test_a_network_is_cut_at_its_separators() -> None:
    whole = whole_of(plain_net(blocks=4))
    found = separators(whole.model, light_tensors(whole.model))
    parts = cut_at(whole, [found[1], found[3]], "scores")
    assert [tail is None for tail in parts.tails] == [True, True, False]
    (mine,), (theirs,) = answers(parts, whole.large), run(whole.model, whole.large)
    np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert [list(array.shape) for array in run(parts.stages[0], whole.large)] == [
        [3, CHANNELS, SIDE, SIDE]
    ]


def test_shapes_of_the_input_do_not_join_stages() -> None:
    make = Maker()
    shape = make.node("Shape", "input")
    rows = make.node("Gather", shape, make.constant([0], np.int64))
    state = make.stem("input")
    for _ in range(2):
        state = make.block(state)
        target = make.node("Concat", rows, make.constant([-1, SIDE, SIDE], np.int64), axis=0)
        state = make.node("Reshape", state, target)
    whole = whole_of(make.model(image_input(), {make.classify(state, "scores"): ["batch", 3]}))
    found = separators(whole.model, light_tensors(whole.model))
    assert len(found) == 3
    parts = cut_at(whole, found[1:2], "scores")
    (mine,), (theirs,) = answers(parts, whole.large), run(whole.model, whole.large)
    np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_state_without_rows_is_refused() -> None:
    make = Maker()
    state = make.node("Transpose", make.stem("input"), perm=[1, 0, 2, 3])
    back = make.node("Transpose", state, perm=[1, 0, 2, 3])
    model = make.model(image_input(), {make.classify(make.block(back), "scores"): ["batch", 3]})
    with pytest.raises(CannotCut, match="rows cannot leave it one by one"):
        cut_at(whole_of(model), [state], "scores")


def test_an_exit_without_work_of_its_own_is_refused() -> None:
    make = Maker()
    state = make.block(make.stem("input"))
    first, second = make.classify(state, "early"), make.classify(state, "late")
    last = make.classify(make.block(state), "last")
    outputs = {name: ["batch", 3] for name in (first, second, last)}
    with pytest.raises(CannotCut, match="exit 1 has no work of its own"):
        cut_exits(whole_of(make.model(image_input(), outputs)), [first, second, last])


def text_net(layers: int = 3) -> ModelProto:
    """Layers that read a mask which is made of the input once, as encoders are exported."""
    make = Maker()
    table = make.constant(make.random.normal(size=(50, CHANNELS)))
    wide = make.node("Unsqueeze", make.node("Cast", "mask", to=1), make.constant([2], np.int64))
    state = make.node("Gather", table, "ids")
    for _ in range(layers):
        weights = make.constant(make.random.normal(size=(CHANNELS, CHANNELS)))
        mixed = make.node("Mul", make.node("MatMul", state, weights), wide)
        state = make.node("Add", state, make.node("Tanh", mixed))
    pooled = make.node("ReduceMean", state, axes=[1], keepdims=0)
    weights = make.constant(make.random.normal(size=(CHANNELS, 3)))
    out = make.node("MatMul", pooled, weights, out="scores")
    kinds = {name: (TensorProto.INT64, ["n", "l"]) for name in ("ids", "mask")}
    return make.model(kinds, {out: ["n", 3]})


def test_masks_are_made_again_in_every_stage_and_not_work() -> None:
    model = text_net()
    forget_shapes(model)
    small, large = (
        tuple(np.ones((n, length), np.int64) for _ in range(2)) for n, length in ((2, 5), (3, 6))
    )
    whole = Whole(model, small, large)
    found = separators(model, light_tensors(model))
    assert len(found) == 3
    parts = cut_at(whole, found[:2], "scores")
    assert [state[1:] for state in parts.states] == [["mask"], ["mask"], []]
    (mine,), (theirs,) = answers(parts, large), run(model, large)
    np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert sum(map(work, parts.stages)) + work(parts.tails[-1]) == work(model)  # type: ignore[arg-type]
