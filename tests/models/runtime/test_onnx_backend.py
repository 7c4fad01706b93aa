from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import pytest

from models.backend import Part
from models.runtime import onnx_backend
from models.runtime.onnx_backend import OnnxBackend, open_onnx_backend
from models.runtime.onnx_device_backend import DeviceOnnxBackend
from models.runtime.onnx_session import CPU, Device

Files = tuple[list[Path], list[Path]]
HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()


@pytest.fixture
def exported_files(exported: tuple[Path, OnnxBackend]) -> Files:
    """Stage and head graphs."""
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
    """What a backend on a GPU is made of."""

    stages: list[Path]
    heads: list[Path]
    device: Device
    buckets: tuple[int, ...]


def test_a_gpu_keeps_states_and_other_devices_take_arrays(
    exported_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_backend, "DeviceOnnxBackend", OnGpu)
    gpu, openvino = Device("cuda:0", []), Device("openvino:CPU", CPU.providers)
    for device in (gpu, openvino, CPU):
        monkeypatch.setattr(onnx_backend, "open_device", lambda name, device=device: device)
        backend = open_onnx_backend(*exported_files, device.name, (1, 4))
        if device == gpu:
            assert backend == (*exported_files, gpu, (1, 4))
        else:
            assert isinstance(backend, OnnxBackend) and backend.device == device.name


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
