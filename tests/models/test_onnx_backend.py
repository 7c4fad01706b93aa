from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from models.backend import State
from models.onnx_backend import OnnxBackend, choose_providers

CPU = ["CPUExecutionProvider"]
CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def exported_files(exported: tuple[Path, OnnxBackend]) -> tuple[list[Path], list[Path]]:
    """Stage and head graphs."""
    stages, heads = (
        [exported[0] / f"{part}/{k}.onnx" for k in (0, 1)] for part in ("stages", "heads")
    )
    return stages, heads


def answers(backend: OnnxBackend, inputs: np.ndarray) -> list[np.ndarray]:
    """Logits and log-probabilities of both exits."""
    found: list[np.ndarray] = []
    state: State = (inputs,)
    for exit in range(backend.num_exits):
        state = backend.run_stage(exit, state)
        found += backend.run_head(exit, state)
    return found


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_without_a_gpu_the_cpu_serves(device: str) -> None:
    assert choose_providers(device, CPU) == ("cpu", ["CPUExecutionProvider"])


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_the_runtime_cannot_use_is_an_error(device: str) -> None:
    with pytest.raises(ValueError, match=f"device '{device}' needs the gpu runtime"):
        choose_providers(device, CPU)


@pytest.mark.parametrize(
    ("device", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)]
)
def test_with_a_gpu_the_asked_one_serves(device: str, index: int) -> None:
    used, providers = choose_providers(device, CUDA)
    assert used == f"cuda:{index}"
    assert providers == [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]


def test_the_cpu_can_be_asked_for_beside_a_gpu() -> None:
    assert choose_providers("cpu", CUDA) == ("cpu", ["CPUExecutionProvider"])


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="has CUDA")
def test_a_backend_says_where_it_runs(exported_files: tuple[list[Path], list[Path]]) -> None:
    assert OnnxBackend(*exported_files, device="auto").device == "cpu"
    with pytest.raises(ValueError, match="needs the gpu runtime"):
        OnnxBackend(*exported_files, device="cuda")


@pytest.mark.parametrize("data", [b"", b"no graph", b"\x08\x0a" * 50])
def test_a_file_that_is_no_graph_is_named(
    tmp_path: Path, exported_files: tuple[list[Path], list[Path]], data: bytes
) -> None:
    stages, heads = exported_files
    (tmp_path / "bad.onnx").write_bytes(data)
    for files in (([tmp_path / "bad.onnx"], heads), (stages, [tmp_path / "bad.onnx"])):
        with pytest.raises(ValueError, match=r"bad\.onnx is not a graph"):
            OnnxBackend(*files)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.onnx"):
        OnnxBackend([tmp_path / "gone.onnx"], [tmp_path / "gone.onnx"])


def test_rows_of_a_batch_do_not_influence_each_other(
    exported_files: tuple[list[Path], list[Path]],
) -> None:
    backend = OnnxBackend(*exported_files)
    inputs = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    before = answers(backend, inputs)
    strange = inputs.copy()
    strange[[0, 1, 3, 4]] = [[[[np.nan]]], [[[1e6]]], [[[-1e6]]], [[[np.inf]]]]
    alone = answers(backend, inputs[2:3])
    for mixed, among_strange, single in zip(before, answers(backend, strange), alone, strict=True):
        assert np.array_equal(mixed[2], among_strange[2])
        np.testing.assert_allclose(single[0], mixed[2], atol=1e-5)


def test_threads_share_a_backend_and_get_the_same_answers(
    exported_files: tuple[list[Path], list[Path]],
) -> None:
    backend = OnnxBackend(*exported_files)
    batches = [
        np.random.default_rng(i).normal(size=(1 + i % 4, 3, 8, 8)).astype(np.float32)
        for i in range(60)
    ]
    alone = [answers(backend, batch) for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda batch: answers(backend, batch), batches))
    for a, b in zip(alone, together, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
