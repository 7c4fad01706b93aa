import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.backend import OutOfMemory, Part
from models.bundle import Bundle, BundleError, load_bundle, write_manifest
from models.networks.families import Network
from models.networks.multi_exit import MultiExitModel
from models.runtime.torch_backend import TorchBackend, choose_torch_device, open_torch_backend
from tests.bundles import SMALL_IMAGE

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")
SETTINGS: dict[str, object] = {"num_classes": 2, "exits": [1], "heads": [[[4, 2]]]}


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the process's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(number, 3)).astype(np.float32)


def linear() -> MultiExitModel:
    torch.manual_seed(0)
    return MultiExitModel([nn.Linear(3, 4), nn.Linear(4, 4)], [nn.Linear(4, 2), nn.Linear(4, 2)])


def make_bundle(folder: Path, **network: object) -> Bundle:
    """Make a bundle whose graphs and scheduler are placeholders."""
    graphs = [f"{part}/{k}.onnx" for part in ("stages", "heads") for k in range(2)]
    others = ["scheduler.json", "scheduler.npz", "predictions.npz", "profile.json"]
    for name in (*graphs, *others):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"stand-in")
    write_manifest(
        folder,
        name="cats",
        version="1",
        task="image",
        classes=("cat", "dog"),
        num_exits=2,
        inputs={"image": SMALL_IMAGE},
        precisions={
            "float32": {
                "folder": "",
                "predictions": "predictions.npz",
                "schedulers": {"maxprob": ""},
                "policy": "maxprob",
                "default_budget_ms": None,
            }
        },
        training={},
        **network,
    )
    return load_bundle(folder)


def make_torch_bundle(
    folder: Path, settings: dict[str, object] = SETTINGS
) -> tuple[Bundle, MultiExitModel]:
    """Make a bundle with a network's weights; the settings may be of another network."""
    torch.manual_seed(3)
    model = Network("resnet8", SETTINGS).build()
    save_file(model.state_dict(), folder / "weights.safetensors")
    return make_bundle(folder, network={"arch": "resnet8", "settings": settings}), model


def test_states_are_tensors_and_answers_are_on_the_host() -> None:
    backend, values = TorchBackend(linear()), rows(3)
    state = backend.run_stage(0, (values,))
    output = backend.run_head(0, state)
    assert isinstance(state[0], Tensor) and state[0].shape == (3, 4)
    assert isinstance(output.logits, np.ndarray) and output.log_probs.shape == (3, 2)
    np.testing.assert_allclose(np.exp(output.log_probs).sum(1), 1, atol=1e-6)
    assert backend.device == "cpu" and backend.num_exits == 2


def test_networks_are_put_into_evaluation_mode() -> None:
    model = MultiExitModel([nn.Dropout(0.5)], [nn.Dropout(0.5)]).train()
    backend, values = TorchBackend(model), rows(4)
    output = backend.run_head(0, backend.run_stage(0, (values,)))
    assert np.array_equal(output.logits, values)


def test_inputs_that_cannot_be_written_are_fine_and_stay_as_they_are() -> None:
    values = rows(2)
    values.flags.writeable = False
    TorchBackend(linear()).run_stage(0, (values,))
    assert np.array_equal(values, rows(2))


def test_a_whole_batch_stays_where_it_is() -> None:
    backend = TorchBackend(linear())
    state = backend.run_stage(0, (rows(3),))
    assert backend.gather([Part(state, [0, 1, 2])])[0] is state[0]


class Full(nn.Module):
    """A stage that has memory for one row only."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error
        return torch.empty(10**13 * (len(x) - 1) + 1)


def test_torch_without_room_is_out_of_memory_and_goes_on() -> None:
    backend = TorchBackend(MultiExitModel([Full()], [Full()]))
    with pytest.raises(OutOfMemory, match="can't allocate memory"):
        backend.run_stage(0, (rows(2),))
    assert backend.run_stage(0, (rows(1),))[0].shape == (1,)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_lack_of_memory_has_many_names(error: Exception) -> None:
    backend = TorchBackend(MultiExitModel([Full(error)], [Full(error)]))
    for run in (backend.run_stage, backend.run_head):
        with pytest.raises(OutOfMemory) as caught:
            run(0, (rows(1),))
        assert caught.value.__cause__ is error


def test_other_errors_are_left_to_the_caller() -> None:
    backend = TorchBackend(MultiExitModel([Full(RuntimeError("shapes differ"))], [Full()]))
    with pytest.raises(RuntimeError, match="shapes differ"):
        backend.run_stage(0, (rows(1),))


@pytest.mark.parametrize(
    "compiler",
    ["eager", pytest.param("inductor", marks=[needs_compiler, pytest.mark.slow])],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_stages_answer_as_the_network_does(
    monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    """With torch's own compiler, and with one that runs the traced graphs as they are."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compiler))
    torch.manual_seed(0)
    model = MultiExitModel([nn.Linear(3, 4)], [nn.Linear(4, 2)])  # a graph takes seconds to compile
    eager, compiled = TorchBackend(model), TorchBackend(model, mode="compile")
    output, again = (b.run_head(0, b.run_stage(0, (rows(2),))) for b in (eager, compiled))
    np.testing.assert_allclose(again.logits, output.logits, atol=1e-5)
    np.testing.assert_allclose(again.log_probs, output.log_probs, atol=1e-5)


def test_a_mode_that_the_device_does_not_have_is_an_error() -> None:
    with pytest.raises(ValueError, match="'cuda-graphs' needs a GPU, not device 'cpu'"):
        TorchBackend(linear(), mode="cuda-graphs")
    with pytest.raises(ValueError, match="'fast' is unknown; use eager, compile, cuda-graphs"):
        TorchBackend(linear(), mode="fast")  # type: ignore[arg-type]


def test_a_bundles_network_is_the_one_that_it_was_built_of(tmp_path: Path, threads: None) -> None:
    bundle, model = make_torch_bundle(tmp_path)
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    torch.set_num_threads(2)
    backend = open_torch_backend(bundle, "cpu", buckets=(4,))
    assert torch.get_num_threads() == 1 and backend.buckets == (4,)
    output = backend.run_head(0, backend.run_stage(0, (images,)))
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(images))[0]
    np.testing.assert_allclose(output.logits, expected, atol=1e-6)


def test_a_bundle_of_graphs_alone_says_how_to_get_the_network(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    with pytest.raises(BundleError, match="no weights for torch; build it with --torch-weights"):
        open_torch_backend(bundle, "cpu")


@pytest.mark.parametrize("settings", [{**SETTINGS, "num_classes": 3}, {"exits": [1]}])
def test_weights_of_another_network_are_an_error(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    bundle, _ = make_torch_bundle(tmp_path, settings)
    with pytest.raises(BundleError, match=r"weights\.safetensors does not fit .* resnet8; build"):
        open_torch_backend(bundle, "cpu")


@needs_no_gpu
def test_without_a_gpu_the_cpu_serves() -> None:
    assert choose_torch_device("cpu") == choose_torch_device("auto") == "cpu"
    for device in ("cuda", "cuda:1"):
        with pytest.raises(
            ValueError, match=f"'{device}' is not available: torch .* finds 0 GPUs; use cpu"
        ):
            choose_torch_device(device)


@pytest.mark.parametrize("device", ["openvino", "tensorrt:0"])
def test_a_device_of_another_runtime_is_an_error(device: str) -> None:
    with pytest.raises(ValueError, match=f"'{device}' is unknown to the torch backend; use auto"):
        choose_torch_device(device)


def test_the_gpu_that_is_asked_for_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    named = {device: choose_torch_device(device) for device in ("auto", "cpu", "cuda", "cuda:1")}
    assert named == {"auto": "cuda:0", "cpu": "cpu", "cuda": "cuda:0", "cuda:1": "cuda:1"}
