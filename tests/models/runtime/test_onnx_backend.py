from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from models.backend import OutOfMemory, Part
from models.runtime.onnx_backend import CPU, HOST, OnnxBackend, open_graph, raise_if_out_of_memory
from models.runtime.onnx_device_backend import DeviceOnnxBackend, run_bound
from tests.graphs import write_graph

Files = tuple[list[Path], list[Path]]


@pytest.fixture
def exported_files(exported: tuple[Path, OnnxBackend]) -> Files:
    """Return the files of stage and head graphs."""
    stages, heads = (
        [exported[0] / f"{part}/{k}.onnx" for k in (0, 1)] for part in ("stages", "heads")
    )
    return stages, heads


@pytest.mark.parametrize("data", [b"", b"no graph", b"\x08\x0a" * 50])
@pytest.mark.parametrize("backend", [OnnxBackend, DeviceOnnxBackend])
def test_a_file_that_is_no_graph_is_named(
    tmp_path: Path, exported_files: Files, data: bytes, backend: type
) -> None:
    stages, heads = exported_files
    (tmp_path / "bad.onnx").write_bytes(data)
    for files in (([tmp_path / "bad.onnx"], heads), (stages, [tmp_path / "bad.onnx"])):
        with pytest.raises(ValueError, match=r"bad\.onnx is not a graph that ONNX Runtime"):
            backend(*files, CPU)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.onnx"):
        OnnxBackend([tmp_path / "gone.onnx"], [tmp_path / "gone.onnx"])


def test_a_whole_batch_is_not_copied(exported_files: Files) -> None:
    backend = OnnxBackend(*exported_files)
    state = backend.run_stage(0, (np.zeros((3, 3, 8, 8), np.float32),))
    (again,) = backend.gather([Part(state, range(3))])
    assert again is state[0]


@pytest.mark.parametrize("rows", [[0, 2, 1], [0, 1], [2], [0, 1, 2, 2]])
def test_rows_that_are_not_the_whole_batch_are_copied(
    exported_files: Files, rows: list[int]
) -> None:
    values = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    (gathered,) = OnnxBackend(*exported_files).gather([Part((values,), rows)])
    assert np.array_equal(gathered, values[rows])


def filler(folder: Path) -> Path:
    """Write a graph that returns `count` zeros."""
    zeros = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["count"], ["zeros"], value=zeros),
            helper.make_node("Neg", ["zeros"], ["out"]),
        ],
        "filler",
        [helper.make_tensor_value_info("count", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "filler.onnx").write_bytes(model.SerializeToString())
    return folder / "filler.onnx"


def test_what_the_runtime_says_when_memory_is_short_is_understood(tmp_path: Path) -> None:
    graph = open_graph(filler(tmp_path), CPU)
    few, many = np.array([3]), np.array([10**13])
    with pytest.raises(OutOfMemory, match="Failed to allocate memory"):
        graph.run((many,))
    with pytest.raises(OutOfMemory, match="Failed to allocate memory"):
        run_bound(graph, (many,), HOST, HOST)
    assert graph.run((few,))[0].shape == (3,)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "Error in execution: Non-zero status code returned while running Conv node. Status "
            "Message: bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal Failed to "
            "allocate memory for requested buffer of size 12884901888"
        ),
        Exception("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"),
        Exception("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc(&p, size)"),
        Exception("CUDNN_STATUS_ALLOC_FAILED"),
        Exception("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0"),
        MemoryError("std::bad_alloc"),
    ],
)
def test_a_lack_of_memory_has_many_names(error: Exception) -> None:
    with pytest.raises(OutOfMemory) as caught:
        raise_if_out_of_memory(error)
    assert caught.value.__cause__ is error


def test_other_errors_are_left_to_the_caller(tmp_path: Path) -> None:
    raise_if_out_of_memory(ValueError("Required inputs (['x']) are missing"))
    graph = open_graph(filler(tmp_path), CPU)
    for run in (graph.run, lambda state: run_bound(graph, state, HOST, HOST)):
        with pytest.raises(Exception, match=r"(?i)unexpected input data type") as caught:
            run((np.array([3.0], np.float32),))
        assert not isinstance(caught.value, OutOfMemory)


def graphs_with_a_scale_for_the_whole_batch(folder: Path) -> Files:
    """Write one exit whose stage and head round to 8 bits with one scale for all rows."""
    rounding = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["x8", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["x8", "scale", "zero"], ["rounded"]),
    ]
    rows = (TensorProto.FLOAT, 2)
    stage = write_graph(
        folder / "stage.onnx",
        [*rounding, helper.make_node("Neg", ["rounded"], ["y"])],
        {"x": rows},
        {"y": rows},
    )
    ends = [
        helper.make_node("Identity", ["rounded"], ["logits"]),
        helper.make_node("LogSoftmax", ["rounded"], ["log_probs"]),
    ]
    outputs = {"logits": rows, "log_probs": rows}
    head = write_graph(folder / "head.onnx", [*rounding, *ends], {"x": rows}, outputs)
    return [stage], [head]


def test_graphs_whose_rows_depend_on_each_other_take_one_at_a_time(tmp_path: Path) -> None:
    files = graphs_with_a_scale_for_the_whole_batch(tmp_path)
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    values[2] *= 100  # its scale would round the others to nothing

    def logits(backend: OnnxBackend, rows: np.ndarray) -> np.ndarray:
        return backend.run_head(0, backend.run_stage(0, (rows,))).logits

    together, single = OnnxBackend(*files), OnnxBackend(*files, row_independent=False)
    alone = np.concatenate([logits(single, values[row : row + 1]) for row in range(4)])
    np.testing.assert_allclose(logits(single, values), alone, atol=1e-3)
    assert np.abs(logits(together, values) - alone).max() > 0.1


def test_a_run_uses_as_many_threads_as_it_is_given(exported_files: Files) -> None:
    backend = OnnxBackend(*exported_files, threads_per_run=2)
    for graph in (*backend._stages, *backend._heads):
        assert graph.session.get_session_options().intra_op_num_threads == 2
    (graph, *_) = OnnxBackend(*exported_files)._stages
    assert graph.session.get_session_options().intra_op_num_threads == 1
