from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import models.runtime.onnx_session
from models.backend import OutOfMemory
from models.runtime.onnx_device_backend import run_bound
from models.runtime.onnx_session import (
    CPU,
    HOST,
    Device,
    choose_device,
    fault_of,
    open_device,
    open_graph,
    raise_if_out_of_memory,
)

CUDA = ["CUDAExecutionProvider", *CPU.providers]
GPU_WHEEL = ["TensorrtExecutionProvider", *CUDA]
OPENVINO = ["OpenVINOExecutionProvider", *CPU.providers]


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_without_a_gpu_the_cpu_serves(device: str) -> None:
    assert choose_device(device, CPU.providers) == ("cpu", ["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("device", "remedy"),
    [
        ("cuda", "needs the gpu runtime; install the extra `gpu` instead of `cpu`"),
        ("cuda:1", "needs the gpu runtime"),
        ("tensorrt", "needs the gpu runtime"),
        ("openvino:GPU", "needs the OpenVINO runtime; install onnxruntime-openvino"),
    ],
)
def test_a_device_that_the_runtime_has_no_provider_for_is_an_error(
    device: str, remedy: str
) -> None:
    with pytest.raises(ValueError, match=f"device '{device}' {remedy}"):
        choose_device(device, CPU.providers)


def test_a_device_of_another_kind_is_an_error_that_names_the_kinds() -> None:
    with pytest.raises(
        ValueError, match="'tpu' is unknown; use auto, cpu, cuda, tensorrt, openvino"
    ):
        choose_device("tpu", GPU_WHEEL)


@pytest.mark.parametrize(
    ("device", "available", "name", "options"),
    [
        ("auto", CUDA, "cuda:0", [{"device_id": "0"}]),
        ("cuda", CUDA, "cuda:0", [{"device_id": "0"}]),
        ("cuda:1", GPU_WHEEL, "cuda:1", [{"device_id": "1"}]),
        ("auto", GPU_WHEEL, "cuda:0", [{"device_id": "0"}]),
        ("tensorrt:2", GPU_WHEEL, "tensorrt:2", [{"device_id": "2"}] * 2),
        ("openvino", OPENVINO, "openvino:CPU", [{"device_type": "CPU"}]),
        ("openvino:GPU.1", OPENVINO, "openvino:GPU.1", [{"device_type": "GPU.1"}]),
    ],
)
def test_the_asked_device_serves(
    device: str, available: list[str], name: str, options: list[dict[str, str]]
) -> None:
    chosen = choose_device(device, available)
    *own, last = chosen.providers
    assert (chosen.name, last) == (name, "CPUExecutionProvider")
    assert [given[1] for given in own] == options
    assert {given[0] for given in own} <= set(available)


def test_openvino_is_used_only_where_it_is_asked_for() -> None:
    assert choose_device("auto", OPENVINO).name == "cpu"


@pytest.mark.parametrize(
    ("device", "memory"),
    [
        ("cpu", ("cpu", 0)),
        ("cuda:1", ("cuda", 1)),
        ("tensorrt", ("cuda", 0)),
        ("openvino", ("cpu", 0)),
    ],
)
def test_states_lie_where_the_device_computes(device: str, memory: tuple[str, int]) -> None:
    assert choose_device(device, [*GPU_WHEEL, *OPENVINO]).memory == memory


def test_tensorrt_leaves_copies_of_rows_to_cuda() -> None:
    chosen = choose_device("tensorrt:1", GPU_WHEEL).for_copies
    assert chosen.providers == [("CUDAExecutionProvider", {"device_id": "1"}), *CPU.providers]
    for device in ("cpu", "cuda"):
        alike = choose_device(device, GPU_WHEEL)
        assert alike.for_copies == alike


NPU = Device("npu:0", [("QNNExecutionProvider", {}), *CPU.providers])  # of no wheel used here
unknown_npu = pytest.mark.filterwarnings("ignore:Specified provider 'QNN.*' is not in:UserWarning")


@unknown_npu
def test_a_provider_that_does_not_load_is_a_fault() -> None:
    assert fault_of(NPU) == "ONNX Runtime's QNNExecutionProvider does not load here"


def test_a_provider_that_refuses_to_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **options: object) -> None:
        raise RuntimeError("please install TensorRT libraries\n")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    fault = fault_of(choose_device("tensorrt", GPU_WHEEL))
    assert fault is not None and fault.endswith("not load here: please install TensorRT libraries")


def test_the_cpu_need_not_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ort, "InferenceSession")
    assert open_device("cpu") == CPU


@unknown_npu
def test_where_a_gpu_does_not_load_the_cpu_serves_unless_the_gpu_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(models.runtime.onnx_session, "choose_device", lambda device, available: NPU)
    assert open_device("auto") == CPU
    reason = "device 'npu:0' is not available: ONNX Runtime's QNNExecutionProvider does not load"
    assert caplog.messages == [f"{reason} here; serving on the CPU"]
    with pytest.raises(ValueError, match=f"^{reason} here$"):
        open_device("npu:0")


def filler(folder: Path) -> Path:
    """A graph that makes as many zeros as it is told."""
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
