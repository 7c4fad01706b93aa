import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models.backend import State
from models.export.onnx_graphs import largest_disagreement
from models.networks.multi_exit import MultiExitModel
from models.runtime.onnx_backend import OnnxBackend

Exported = tuple[Path, OnnxBackend]


def graphs(folder: Path) -> dict[str, onnx.ModelProto]:
    return {
        path.relative_to(folder).as_posix(): onnx.load(path, load_external_data=False)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def images(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_graphs_agree_with_the_network(
    network: MultiExitModel, exported: Exported, rows: int
) -> None:
    backend = exported[1]
    inputs = images(rows)
    assert largest_disagreement(network, backend, (inputs,)) < 1e-4
    expected = network(torch.from_numpy(inputs)).detach()
    state: State = (inputs,)
    for exit in range(2):
        state = backend.run_stage(exit, state)
        logits, log_probs = backend.run_head(exit, state)
        assert logits.shape == log_probs.shape == (rows, 3)
        np.testing.assert_allclose(logits, expected[exit], atol=1e-4)
        np.testing.assert_allclose(log_probs, expected[exit].log_softmax(-1), atol=1e-4)


def test_a_graph_that_differs_shows_in_the_disagreement(
    network: MultiExitModel, exported: Exported
) -> None:
    bias = network.heads[0].linear.bias
    with torch.no_grad():
        bias += 0.5
    try:
        worst = largest_disagreement(network, exported[1], (images(3),))
    finally:
        with torch.no_grad():
            bias -= 0.5
    assert worst == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("exit", [0, 1])
def test_a_logit_that_is_no_number_is_a_disagreement(
    network: MultiExitModel, exported: Exported, exit: int, value: float
) -> None:
    model = copy.deepcopy(network)
    with torch.no_grad():
        model.heads[exit].linear.bias[1] = value
    assert largest_disagreement(model, exported[1], (images(3),)) == np.inf


def test_each_stage_and_head_is_one_file(exported: Exported) -> None:
    files = graphs(exported[0])
    assert list(files) == ["heads/0.onnx", "heads/1.onnx", "stages/0.onnx", "stages/1.onnx"]
    for graph in files.values():
        assert all(
            tensor.data_location != onnx.TensorProto.EXTERNAL for tensor in graph.graph.initializer
        )


def test_the_batch_is_dynamic_and_nothing_else(exported: Exported) -> None:
    (state,) = graphs(exported[0])["stages/0.onnx"].graph.input
    batch, *rest = state.type.tensor_type.shape.dim
    assert batch.dim_param and [dim.dim_value for dim in rest] == [3, 8, 8]


def test_kernels_are_stored_in_half_only_where_that_is_exact(exported: Exported) -> None:
    kernels = {
        name: {tensor.data_type for tensor in graph.graph.initializer if len(tensor.dims) > 1}
        for name, graph in graphs(exported[0]).items()
    }
    half, single = {onnx.TensorProto.FLOAT16}, {onnx.TensorProto.FLOAT}
    assert kernels["stages/0.onnx"] == half and kernels["stages/1.onnx"] == single
    assert kernels["heads/1.onnx"] == single and onnx.TensorProto.FLOAT16 in kernels["heads/0.onnx"]
    assert {
        tensor.data_type
        for tensor in graphs(exported[0])["stages/0.onnx"].graph.initializer
        if len(tensor.dims) == 1 and tensor.data_type != onnx.TensorProto.INT64
    } == single


def test_graphs_tell_nothing_of_the_machine_that_made_them(exported: Exported) -> None:
    for path in exported[0].rglob("*.onnx"):
        content = path.read_bytes()
        for trace in (b"site-packages", b".py", b"stack_trace", str(Path.cwd()).encode()):
            assert trace not in content, (path, trace)
