import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.backend import Part, State, gather_arrays
from models.export.onnx_graphs import Graphs, export_graphs, largest_disagreement, write_graphs
from models.export.weights import Storage, with_stored_weights
from models.networks.encoder import EncoderConfig, bert_encoder
from models.networks.multi_exit import MultiExitModel
from models.runtime.onnx_backend import OnnxBackend

Array = NDArray[np.float32]
Kind = Literal["images", "texts"]
Case = tuple[MultiExitModel, Graphs]
STORAGES: tuple[Storage, ...] = ("exact", "int8")


@pytest.fixture(scope="module")
def encoder() -> tuple[MultiExitModel, Graphs]:
    """One exit after a layer with weights large enough to distinguish tokens, and its graphs."""
    torch.manual_seed(0)
    model = bert_encoder(
        EncoderConfig(
            vocab_size=200,
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=64,
            num_labels=3,
            exits_after_layer=(1,),
        )
    )
    with torch.no_grad():
        for value in model.parameters():
            value += 0.2 * torch.randn_like(value)
    return model, export_graphs(model, inputs("texts", 2, 8), inputs("texts", 3, 9))


@pytest.fixture(params=["images", pytest.param("texts", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def case(kind: Kind, request: pytest.FixtureRequest, network: MultiExitModel) -> Case:
    """A network of the kind and its graphs."""
    if kind == "texts":
        return request.getfixturevalue("encoder")
    return network, request.getfixturevalue("graphs")


def inputs(kind: Kind, rows: int, tokens: int = 11) -> State:
    rng = np.random.default_rng(rows)
    if kind == "images":
        return (rng.normal(size=(rows, 3, 8, 8)).astype(np.float32),)
    ids, mask = rng.integers(1, 200, (rows, tokens)), np.ones((rows, tokens), np.int64)
    ids[1::2, 6:] = mask[1::2, 6:] = 0
    return ids, mask


def answers(backend: OnnxBackend, state: State) -> list[Array]:
    logits = []
    for exit in range(backend.num_exits):
        state = backend.run_stage(exit, state)
        logits.append(backend.run_head(exit, state).logits)
    return logits


def rounded(model: MultiExitModel) -> MultiExitModel:
    """Copy the network with the weights that a graph stores in 8 bits."""
    again = copy.deepcopy(model).eval()
    with torch.no_grad():
        for value in again.parameters():
            if value.ndim > 1:
                value.copy_(min(in_levels(value), key=lambda near: (near - value).square().sum()))
    return again


def in_levels(value: torch.Tensor) -> Iterable[torch.Tensor]:
    """Round a tensor to 255 levels per channel, along its first and along its last axis."""
    for axis in (0, value.ndim - 1):
        others = [i for i in range(value.ndim) if i != axis]
        step = value.abs().amax(others, keepdim=True) / 127
        yield (value / step).round() * step


def of_type(graph: onnx.ModelProto, kind: int) -> list[onnx.TensorProto]:
    return [tensor for tensor in graph.graph.initializer if tensor.data_type == kind]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.onnx"))


def product(matrix: Array) -> onnx.ModelProto:
    """Make a graph that multiplies by a matrix and adds a vector."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "matrix"], ["y"]),
            helper.make_node("Add", ["y", "vector"], ["z"]),
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", len(matrix)])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["rows", matrix.shape[1]])],
        [
            numpy_helper.from_array(matrix, "matrix"),
            numpy_helper.from_array(np.full(matrix.shape[1], 1 / 3, np.float32), "vector"),
        ],
    )
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def held(graph: onnx.ModelProto) -> Array:
    """Return the matrix of a `product` graph as the runtime loads it."""
    onnx.checker.check_model(graph, full_check=True)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (rows,) = session.run(None, {"x": np.eye(session.get_inputs()[0].shape[1], dtype=np.float32)})
    return rows - np.float32(1 / 3)


def test_8_bits_make_smaller_files(case: Case, kind: Kind, tmp_path: Path) -> None:
    _, graphs = case
    plain = sum(graph.ByteSize() for part in graphs for graph in part)
    write_graphs(graphs, tmp_path, "int8")
    assert size(tmp_path) < 0.45 * plain
    assert sum(t.ByteSize() for t in stored(tmp_path, TensorProto.INT8)) < 0.27 * sum(
        t.ByteSize() for part in graphs for graph in part for t in of_type(graph, TensorProto.FLOAT)
    )


def stored(folder: Path, kind: int) -> list[onnx.TensorProto]:
    return [t for path in folder.rglob("*.onnx") for t in of_type(onnx.load(path), kind)]


def test_answers_differ_by_the_rounding_of_the_weights_alone(
    case: Case, kind: Kind, tmp_path: Path
) -> None:
    model, graphs = case
    backend = write_graphs(graphs, tmp_path, "int8")
    state = inputs(kind, 5)
    assert largest_disagreement(rounded(model), backend, state) < 1e-4
    assert 1e-4 < largest_disagreement(model, backend, state) < 0.3


def test_what_half_precision_holds_exactly_answers_as_before(
    graphs: Graphs, exported: tuple[Path, OnnxBackend], tmp_path: Path
) -> None:
    for part in ("stages", "heads"):
        (tmp_path / part).mkdir()
        for k, graph in enumerate(getattr(graphs, part)):
            (tmp_path / f"{part}/{k}.onnx").write_bytes(graph.SerializeToString())
    plain = OnnxBackend(
        *([tmp_path / f"{p}/{k}.onnx" for k in (0, 1)] for p in ("stages", "heads"))
    )
    state = inputs("images", 5)
    for a, b in zip(answers(plain, state), answers(exported[1], state), strict=True):
        assert np.array_equal(a, b)
    assert size(exported[0]) < size(tmp_path)


def test_nothing_is_widened_once_a_graph_is_loaded(case: Case, kind: Kind, tmp_path: Path) -> None:
    _, graphs = case
    write_graphs(graphs, tmp_path, "int8")
    for path in sorted(tmp_path.rglob("*.onnx")):
        assert of_type(onnx.load(path), TensorProto.INT8), path
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        loaded = onnx.load(tmp_path / "loaded.onnx").graph
        kinds = {tensor.name: tensor.data_type for tensor in loaded.initializer}
        assert not {TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8} & {*kinds.values()}
        matrices = {tensor.name for tensor in loaded.initializer if len(tensor.dims) > 1}
        assert matrices
        for node in loaded.node:
            assert node.op_type != "DequantizeLinear"
            assert node.op_type not in ("Cast", "Mul") or not matrices & {*node.input}, node


@pytest.mark.parametrize("storage", STORAGES)
def test_rows_do_not_depend_on_their_batch(
    case: Case, kind: Kind, storage: Storage, tmp_path: Path
) -> None:
    _, graphs = case
    backend = write_graphs(graphs, tmp_path, storage)
    state = inputs(kind, 6)
    loud = tuple(array.copy() for array in state)
    loud[0][[0, 1, 3, 4, 5]] = 199 if kind == "texts" else 1e4
    together, among_loud = answers(backend, state), answers(backend, loud)
    for row in range(6):
        by_itself = answers(backend, gather_arrays([Part(state, [row])]))
        for alone, among in zip(by_itself, together, strict=True):
            np.testing.assert_allclose(alone[0], among[row], rtol=0, atol=1e-4)
    for quiet, among in zip(together, among_loud, strict=True):
        np.testing.assert_allclose(quiet[2], among[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("storage", STORAGES)
def test_vectors_and_whole_numbers_stay_and_so_does_the_graph_given(
    graphs: Graphs, storage: Storage
) -> None:
    for graph in (*graphs.stages, *graphs.heads):
        before = graph.SerializeToString()
        after = {t.name: t for t in with_stored_weights(graph, storage).graph.initializer}
        assert graph.SerializeToString() == before
        for tensor in graph.graph.initializer:
            if len(tensor.dims) < 2 or tensor.data_type != TensorProto.FLOAT:
                assert after[tensor.name] == tensor


def test_the_axis_that_loses_least_is_stored_in_levels() -> None:
    rng = np.random.default_rng(0)
    base, scales = rng.uniform(-1, 1, (6, 8)), 10.0 ** np.arange(-3, 3)
    for matrix in (base * scales[:, None], (base * scales[:, None]).T):
        given = matrix.astype(np.float32)
        graph = with_stored_weights(product(given), "int8")
        (levels,) = of_type(graph, TensorProto.INT8)
        assert np.abs(numpy_helper.to_array(levels)).max() == 127
        steps = np.abs(given).max(0 if given.shape == (8, 6) else 1, keepdims=True) / 127
        assert (np.abs(held(graph) - given) <= 0.51 * steps + 1e-6).all()


def test_a_channel_of_zeros_stays_one() -> None:
    matrix = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    matrix[:, 2] = matrix[1] = 0
    back = held(with_stored_weights(product(matrix), "int8"))
    np.testing.assert_allclose(back[:, 2], 0, atol=1e-7)
    np.testing.assert_allclose(back[1], 0, atol=1e-7)
    np.testing.assert_allclose(back, matrix, atol=np.abs(matrix).max() / 250)
    zeros = np.zeros((3, 2), np.float32)
    np.testing.assert_allclose(held(with_stored_weights(product(zeros), "int8")), 0, atol=1e-7)


def test_what_half_precision_cannot_hold_is_kept() -> None:
    matrix = np.array([[1e6, 2.0], [-1e6, 0.5]], np.float32)
    kept = with_stored_weights(product(matrix), "exact")
    assert not of_type(kept, TensorProto.FLOAT16)
    np.testing.assert_array_equal(held(kept)[:, 0], [1e6, -1e6])


@pytest.mark.parametrize(
    ("value", "kind"), [(0.5, TensorProto.FLOAT16), (0.1, TensorProto.FLOAT), (np.nan, None)]
)
def test_single_precision_is_kept_where_half_is_not_exact(value: float, kind: int | None) -> None:
    graph = with_stored_weights(product(np.full((3, 3), value, np.float32)), "exact")
    (matrix,) = (t for t in graph.graph.initializer if len(t.dims) == 2)
    assert matrix.data_type == (TensorProto.FLOAT if kind is None else kind)
