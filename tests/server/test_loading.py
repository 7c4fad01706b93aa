from pathlib import Path
from typing import Any

import pytest

import server.loading
from models.bundle import load_bundle
from models.runtime.onnx_backend import CPU, Device, OnnxBackend
from server.loading import open_backend
from server.settings import Settings


def test_a_run_gets_the_threads_of_the_settings(shipped_bundle: Path) -> None:
    variant = load_bundle(shipped_bundle).variant("float32")
    backend = open_backend(variant, Settings(device="cpu", threads_per_run=2))
    assert isinstance(backend, OnnxBackend)
    options = backend._stages[0].session.get_session_options()
    assert options.intra_op_num_threads == 2


def test_a_gpu_gets_the_bound_of_the_settings(
    shipped_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Device("cuda:0", [("CUDAExecutionProvider", {"device_id": "0"}), *CPU.providers])
    monkeypatch.setattr(server.loading, "open_device", lambda device: gpu)
    opened: list[Device] = []

    def note(device: Device, *files: Any, **options: Any) -> None:
        opened.append(device)

    monkeypatch.setattr(server.loading, "open_backend_on", note)
    variant = load_bundle(shipped_bundle).variant("float32")
    open_backend(variant, Settings(gpu_memory_mib=64))
    assert opened == [gpu.with_memory_limit(64)] != [gpu]


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_one_process_does_not_open_several_devices(shipped_bundle: Path, backend: Any) -> None:
    variant = load_bundle(shipped_bundle).variant("float32")
    with pytest.raises(ValueError, match="one process runs one device, not 'cuda:0,cuda:1'"):
        open_backend(variant, Settings(device="cuda:0,cuda:1", backend=backend))
