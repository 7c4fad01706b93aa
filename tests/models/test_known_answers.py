from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.backend import HeadOutput, Part, State, gather_arrays
from models.known_answers import (
    TOLERANCE,
    KnownAnswers,
    largest_difference,
    load_known_answers,
    record_known_answers,
    save_known_answers,
)
from models.runtime.onnx_backend import CPU, OnnxBackend
from models.runtime.onnx_device_backend import DeviceOnnxBackend
from tests.graphs import write_graph

ROWS = 8


class Recorded:
    """Answers of fixed rows, whatever the input; two rows are filled up to ten."""

    num_exits, device = 2, "fake"

    def __init__(self, log_probs: np.ndarray) -> None:
        self._log_probs = np.pad(log_probs, ((0, 0), (0, 2), (0, 0)), constant_values=-99)

    def gather(self, parts: Sequence[Part]) -> State:
        return gather_arrays(parts)

    def run_stage(self, stage: int, state: State) -> State:
        return state

    def run_head(self, exit: int, state: State) -> HeadOutput:
        return HeadOutput(self._log_probs[exit], self._log_probs[exit])

    def synchronize(self) -> None:
        pass


@pytest.fixture
def known() -> KnownAnswers:
    logits = np.random.default_rng(0).normal(size=(2, ROWS, 5)).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return KnownAnswers((np.zeros((ROWS, 3), np.float32),), log_probs)


def test_a_file_gives_back_what_was_saved(known: KnownAnswers, tmp_path: Path) -> None:
    ids = np.arange(2 * ROWS).reshape(ROWS, 2)
    saved = KnownAnswers((ids, ids % 2), known.log_probs)
    save_known_answers(saved, tmp_path / "known.npz")
    loaded = load_known_answers(tmp_path / "known.npz")
    for array, expected in zip(
        (*loaded.inputs, loaded.log_probs), (*saved.inputs, saved.log_probs), strict=True
    ):
        assert np.array_equal(array, expected) and array.dtype == expected.dtype


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_another_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "known.npz"
    if content is None:
        np.savez(path, log_probs=np.array([{}], object), allow_pickle=True)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"known\.npz holds no known answers"):
        load_known_answers(path)


def test_the_same_answers_do_not_differ(known: KnownAnswers) -> None:
    assert largest_difference(Recorded(known.log_probs), known) == 0.0
    # A row's logits are known up to a constant.
    assert largest_difference(Recorded(known.log_probs + 3), known) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("exit", [0, 1])
def test_the_difference_is_a_share_of_the_spread_at_the_worst_exit(
    known: KnownAnswers, exit: int
) -> None:
    centred = known.log_probs - known.log_probs.mean(-1, keepdims=True)
    off = known.log_probs.copy()
    off[exit] += 0.04 * centred[exit]
    off[1 - exit] += 0.02 * centred[1 - exit]
    difference = largest_difference(Recorded(off), known)
    assert difference == pytest.approx(0.04, rel=1e-3) and difference > TOLERANCE


def test_answers_that_are_no_numbers_differ_without_bound(known: KnownAnswers) -> None:
    off = known.log_probs.copy()
    off[1, 3, 2] = np.nan
    assert largest_difference(Recorded(off), known) == np.inf


def test_a_network_without_an_opinion_has_small_differences() -> None:
    flat = np.full((2, ROWS, 5), np.log(0.2), np.float32)
    known = KnownAnswers((np.zeros((ROWS, 3), np.float32),), flat)
    noise = np.random.default_rng(0).normal(size=flat.shape) * 1e-6
    assert largest_difference(Recorded(flat + noise), known) < TOLERANCE


def quantised_graphs(folder: Path) -> tuple[list[Path], list[Path]]:
    """Write an exit whose stage is a product of 8-bit integers, as a quantised graph holds it.

    Weights of 8 bits that are as large as they can be: two products do not fit into 16 bits.
    """
    rng = np.random.default_rng(0)
    weights = np.where(rng.random((64, 5)) < 0.7, 127, -40).astype(np.int8)
    constants = [
        numpy_helper.from_array(np.float32(1 / 255), "x_scale"),
        numpy_helper.from_array(np.uint8(0), "x_zero"),
        numpy_helper.from_array(np.float32(1 / 1000), "w_scale"),
        numpy_helper.from_array(np.int8(0), "w_zero"),
        numpy_helper.from_array(weights, "w8"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "x_scale", "x_zero"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w8", "w_scale", "w_zero"], ["wf"]),
        helper.make_node("MatMul", ["xf", "wf"], ["y"]),
    ]
    kind = TensorProto.FLOAT
    stage = write_graph(folder / "stage.onnx", nodes, {"x": (kind, 2)}, {"y": (kind, 2)}, constants)
    ends = [
        helper.make_node("Identity", ["y"], ["logits"]),
        helper.make_node("LogSoftmax", ["y"], ["log_probs"]),
    ]
    outputs = {"logits": (kind, 2), "log_probs": (kind, 2)}
    head = write_graph(folder / "head.onnx", ends, {"y": (kind, 2)}, outputs)
    return [stage], [head]


def test_known_answers_are_those_of_the_graph_in_float(tmp_path: Path) -> None:
    stages, heads = quantised_graphs(tmp_path)
    inputs = np.random.default_rng(1).random((ROWS, 64)).astype(np.float32)
    known = record_known_answers(stages, heads, (inputs,))
    rng = np.random.default_rng(0)
    weights = np.where(rng.random((64, 5)) < 0.7, 127, -40) / 1000
    logits = np.round(inputs * 255) / 255 @ weights
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(known.log_probs[0], expected, atol=1e-5)
    assert known.log_probs.dtype == np.float32 and known.log_probs.shape == (1, ROWS, 5)


def test_backends_agree_with_known_answers(tmp_path: Path) -> None:
    stages, heads = quantised_graphs(tmp_path)
    dim = np.random.default_rng(1).random((ROWS, 64)).astype(np.float32) / 2
    known = record_known_answers(stages, heads, (dim,))
    for backend in (OnnxBackend(stages, heads), DeviceOnnxBackend(stages, heads, CPU, (1, 16))):
        assert largest_difference(backend, known) < TOLERANCE
