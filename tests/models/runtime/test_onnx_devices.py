from pathlib import Path
from typing import NamedTuple

import onnxruntime as ort
import pytest

from models.runtime import onnx_devices
from models.runtime.onnx_backend import CPU, Device, OnnxBackend
from models.runtime.onnx_devices import (
    choose_device,
    open_backend_on,
    open_device,
    open_onnx_backend,
    provider_fault,
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


@pytest.mark.parametrize("device", ["cuda:1", "tensorrt:1"])
def test_the_memory_of_a_gpu_is_bounded_where_cuda_allocates_it(device: str) -> None:
    chosen = choose_device(device, GPU_WHEEL)
    assert chosen.with_memory_limit(None) == chosen
    bounded = chosen.with_memory_limit(512)
    cuda = ("CUDAExecutionProvider", {"device_id": "1", "gpu_mem_limit": "536870912"})
    assert bounded.providers == [*chosen.providers[:-2], cuda, *CPU.providers]
    assert bounded.for_copies.providers == [cuda, *CPU.providers]


def test_other_memory_has_no_bound() -> None:
    assert CPU.with_memory_limit(512) == CPU
    openvino = choose_device("openvino", OPENVINO)
    assert openvino.with_memory_limit(512) == openvino


NPU = Device("npu:0", [("QNNExecutionProvider", {}), *CPU.providers])  # of no wheel used here
unknown_npu = pytest.mark.filterwarnings("ignore:Specified provider 'QNN.*' is not in:UserWarning")


@unknown_npu
def test_a_provider_that_does_not_load_is_a_fault() -> None:
    assert provider_fault(NPU) == "ONNX Runtime's QNNExecutionProvider does not load here"


def test_a_provider_that_refuses_to_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **options: object) -> None:
        raise RuntimeError("please install TensorRT libraries\n")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    fault = provider_fault(choose_device("tensorrt", GPU_WHEEL))
    assert fault is not None and fault.endswith("not load here: please install TensorRT libraries")


def test_the_cpu_need_not_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ort, "InferenceSession")
    assert open_device("cpu") == CPU


@unknown_npu
def test_where_a_gpu_does_not_load_the_cpu_serves_unless_the_gpu_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(onnx_devices, "choose_device", lambda device, available: NPU)
    assert open_device("auto") == CPU
    reason = "device 'npu:0' is not available: ONNX Runtime's QNNExecutionProvider does not load"
    assert caplog.messages == [f"{reason} here; serving on the CPU"]
    with pytest.raises(ValueError, match=f"^{reason} here$"):
        open_device("npu:0")


Files = tuple[list[Path], list[Path]]
HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()


@pytest.fixture
def exported_files(exported: tuple[Path, OnnxBackend]) -> Files:
    """Return the files of stage and head graphs."""
    stages, heads = (
        [exported[0] / f"{part}/{k}.onnx" for k in (0, 1)] for part in ("stages", "heads")
    )
    return stages, heads


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has CUDA's provider")
def test_a_backend_says_where_it_runs(exported_files: Files) -> None:
    for device in ("cpu", "auto"):
        backend = open_onnx_backend(*exported_files, device)
        assert isinstance(backend, OnnxBackend) and backend.device == "cpu"
    with pytest.raises(ValueError, match="needs the gpu runtime"):
        open_onnx_backend(*exported_files, "cuda")


class OnGpu(NamedTuple):
    """Arguments of a backend on a GPU."""

    stages: list[Path]
    heads: list[Path]
    device: Device
    buckets: tuple[int, ...]
    threads_per_run: int


GPU = Device("cuda:0", [])


def test_a_gpu_keeps_states_and_other_devices_take_arrays(
    exported_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_devices, "DeviceOnnxBackend", OnGpu)
    for device in (GPU, Device("openvino:CPU", CPU.providers), CPU):
        backend = open_backend_on(device, *exported_files, (1, 4), threads_per_run=2)
        if device == GPU:
            assert backend == (*exported_files, GPU, (1, 4), 2)
        else:
            assert isinstance(backend, OnnxBackend) and backend.device == device.name


def test_a_gpu_does_not_take_one_row_at_a_time(exported_files: Files) -> None:
    with pytest.raises(ValueError, match=r"takes one row at a time, .* cuda:0"):
        open_backend_on(GPU, *exported_files, row_independent=False)
