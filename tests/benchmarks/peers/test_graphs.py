from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.peers.graphs import join_graphs, write_whole_graph
from benchmarks.peers.quantise import split_plain_graph
from benchmarks.peers.tasks import PLAIN_IMAGE_GRAPHS
from models.backend import State
from models.bundle import load_bundle
from models.runtime.onnx_backend import OnnxBackend


def graph(nodes: list[onnx.NodeProto], given: int, found: dict[str, int]) -> onnx.ModelProto:
    """A graph of rows of two numbers, from `state_in_0`, with one weight named as in others."""
    scale = numpy_helper.from_array(np.array(0.5, np.float32), "scale")
    return helper.make_model(
        helper.make_graph(
            nodes,
            "part",
            [helper.make_tensor_value_info("state_in_0", given, ["rows", 2])],
            [
                helper.make_tensor_value_info(name, kind, ["rows", 2])
                for name, kind in found.items()
            ],
            [scale],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def run(model: onnx.ModelProto, *state: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return session.run(None, dict(zip(names, state, strict=True)))


def test_stages_whose_states_are_bytes_become_one_graph() -> None:
    node, real = helper.make_node, TensorProto.FLOAT
    quantise = node("QuantizeLinear", ["state_in_0", "scale"], ["state"])
    restore = node("DequantizeLinear", ["state_in_0", "scale"], ["state"])
    to_logits = node("Neg", ["state_in_0"], ["logits"])
    to_log_probs = node("LogSoftmax", ["logits"], ["log_probs"], axis=-1)
    parts = [
        graph([quantise], real, {"state": TensorProto.UINT8}),
        graph([restore], TensorProto.UINT8, {"state": real}),
        graph([to_logits, to_log_probs], real, {"logits": real, "log_probs": real}),
    ]
    (logits,) = run(join_graphs(parts), np.array([[0.6, -3.0], [2.4, 1.0]], np.float32))
    assert logits.tolist() == [[-0.5, 0.0], [-2.5, -1.0]]


def test_a_bundle_becomes_one_graph_of_its_last_exit(shipped_bundle: Path, tmp_path: Path) -> None:
    variant = load_bundle(shipped_bundle).variant()
    write_whole_graph(variant, tmp_path / "whole.onnx")
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    backend = OnnxBackend(variant.stage_files, variant.head_files)
    state: State = (images,)
    for k in range(backend.num_exits):
        state = backend.run_stage(k, state)
    expected = backend.run_head(backend.num_exits - 1, state).logits
    (logits,) = run(onnx.load(tmp_path / "whole.onnx"), images)
    assert logits == pytest.approx(expected, abs=1e-4)


def test_the_plain_network_can_be_cut_and_joined_again() -> None:
    plain = onnx.load(PLAIN_IMAGE_GRAPHS["float32"])
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    (expected,) = run(plain, images)
    cut = split_plain_graph(plain)
    (logits,) = run(join_graphs([*cut.stages, *cut.heads]), images)
    assert logits == pytest.approx(expected, abs=1e-4)
    (state,) = run(cut.stages[0], images)
    _, log_probs = run(cut.heads[0], state)
    assert np.exp(log_probs).sum(1) == pytest.approx(1, abs=1e-5)
