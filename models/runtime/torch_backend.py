"""Run stages and exit heads with torch: the network itself instead of its ONNX graphs."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.backend import (
    HeadOutput,
    OutOfMemory,
    Part,
    State,
    check_buckets,
    gather_arrays,
    is_whole,
    pad_to_bucket,
)
from models.bundle import Bundle, BundleError
from models.networks import multi_exit
from models.networks.families import Network
from models.networks.fcn import coarse_grid
from models.networks.label_sets import with_label_sets
from models.networks.multi_exit import MultiExitModel
from models.runtime.cuda_graphs import CapturedSteps, Step, Tensors, capture_on

log = logging.getLogger(__name__)

Mode = Literal["eager", "compile", "cuda-graphs"]
# Parts of torch's messages about memory, where it has no exception type for it.
NO_MEMORY = ("can't allocate memory", "alloc_failed")


class ServedHead(nn.Module):
    """An exit head that also returns the log-probabilities that policies read.

    Args:
        head: Maps a state to logits (A, C), or for segmentation (A, H, W, C).
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, state: multi_exit.State) -> tuple[Tensor, Tensor]:
        """Compute logits and log-probabilities; for segmentation the latter on a coarser grid."""
        logits = self.head(state)
        is_mask = logits.ndim == 4
        return logits, coarse_grid(logits) if is_mask else logits.log_softmax(-1)


class TorchBackend:
    """Run the stages and heads of a network; states are tensors on its device.

    On a CPU every call uses the number of threads that the process has set.

    Args:
        model: The network; it is put into evaluation mode and moved to the device.
        device: `cpu`, `cuda` or `cuda:N`.
        mode: `eager`; `compile`: `torch.compile` for each stage and head when it first runs;
            `cuda-graphs`: captures each for every batch shape that occurs.
        buckets: Batch sizes, increasing, to which `gather` pads; empty: no padding.

    Raises:
        ValueError: If the mode is unknown, or the device does not support it.
    """

    def __init__(
        self,
        model: MultiExitModel,
        device: str = "cpu",
        mode: Mode = "eager",
        buckets: Sequence[int] = (),
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode {mode!r} is unknown; use {', '.join(get_args(Mode))}")
        self._torch_device = torch.device(device)
        if mode == "cuda-graphs" and self._torch_device.type != "cuda":
            raise ValueError(
                f"mode 'cuda-graphs' needs a GPU, not device {device!r}; use eager or compile"
            )
        self.device = str(self._torch_device)
        self.buckets = check_buckets(buckets)
        model.eval().to(self._torch_device)
        self._stages = [_step(stage, mode) for stage in model.stages]
        self._heads = [_step(ServedHead(head).eval(), mode) for head in model.heads]
        if mode == "cuda-graphs":
            captured = CapturedSteps(capture_on(self._torch_device))
            self._stages = [captured.step(stage) for stage in self._stages]
            self._heads = [captured.step(head) for head in self._heads]

    @property
    def num_exits(self) -> int:
        """Number of exits, K."""
        return len(self._heads)

    def gather(self, parts: Sequence[Part]) -> State:
        """Join the rows of all parts where they are, padded to the next bucket."""
        padded = pad_to_bucket(parts, self.buckets)
        if isinstance(padded[0].state[0], np.ndarray):
            return gather_arrays(padded)
        with _inference():
            selected = [_select_rows(part) for part in padded]
            if len(selected) == 1:
                return selected[0]
            return tuple(torch.cat(tensors) for tensors in zip(*selected, strict=True))

    def run_stage(self, stage: int, state: State) -> State:
        """Run one stage; its output stays on the device."""
        with _inference():
            return self._stages[stage](tuple(self._to_device(value) for value in state))

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Run one head and copy its outputs to the host."""
        with _inference():
            outputs = self._heads[exit](tuple(self._to_device(value) for value in state))
            on_host = [output.to("cpu", non_blocking=True) for output in outputs]
            self.synchronize()
            return HeadOutput(*(output.numpy() for output in on_host))

    def synchronize(self) -> None:
        """Wait for the work that the calling thread has queued on a GPU."""
        if self._torch_device.type == "cuda":
            torch.cuda.current_stream(self._torch_device).synchronize()

    def _to_device(self, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value
        return torch.tensor(value, device=self._torch_device)


def open_torch_backend(
    bundle: Bundle, device: str = "auto", mode: Mode = "eager", buckets: Sequence[int] = ()
) -> TorchBackend:
    """Open the torch network of a bundle.

    Args:
        bundle: A bundle that was built with `--torch-weights`.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`: a GPU if torch finds one.
        mode: As for `TorchBackend`.
        buckets: As for `TorchBackend`.

    Raises:
        ValueError: If the bundle holds no weights for torch, the weights do not fit its network, or
            the device is not available.
    """
    network, weights = bundle.manifest.network, bundle.torch_weights
    if network is None or weights is None:
        raise BundleError(
            f"{bundle.folder} holds no weights for torch; build it with --torch-weights"
        )
    chosen = choose_torch_device(device)
    try:
        model = Network(network.arch, network.settings).build()
        if bundle.manifest.thresholds is not None:
            model = with_label_sets(model, len(bundle.manifest.classes))
        model.load_state_dict(load_file(weights))
    except (ValueError, RuntimeError) as error:  # unknown settings, tensors that do not fit
        raise BundleError(
            f"{weights} does not fit the bundle's network {network.arch}; build the bundle again"
        ) from error
    if chosen == "cpu":
        # Engine workers are the parallelism. The setting holds for the whole process, so it is made
        # here, where a server starts, and not in every backend.
        torch.set_num_threads(1)
    return TorchBackend(model, chosen, mode, buckets)


def choose_torch_device(device: str) -> str:
    """Return torch's name of a device.

    Raises:
        ValueError: If the backend does not know the device, or it is not available.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"device {device!r} is unknown to the torch backend; use auto, cpu or cuda"
        )
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        if kind == "auto":
            log.info("torch finds no GPU; serving on the CPU")
        return "cpu"
    if int(index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not available: torch {torch.__version__} finds "
            f"{torch.cuda.device_count()} GPUs; use cpu"
        )
    return f"cuda:{int(index or 0)}"


def _step(module: nn.Module, mode: Mode) -> Step:
    """Wrap a stage or head so that its input and output are tuples of tensors."""
    run = torch.compile(module) if mode == "compile" else module

    def step(values: Tensors) -> Tensors:
        output = run(values[0] if len(values) == 1 else values)
        return output if isinstance(output, tuple) else (output,)

    return step


def _select_rows(part: Part) -> Tensors:
    tensors: Tensors = part.state
    if is_whole(part, len(tensors[0])):
        return tensors
    if len(part.rows) == 1:
        return tuple(tensor[part.rows[0] : part.rows[0] + 1] for tensor in tensors)
    rows = torch.tensor(part.rows, device=tensors[0].device)
    return tuple(tensor.index_select(0, rows) for tensor in tensors)


@contextmanager
def _inference() -> Iterator[None]:
    """Disable gradients, and turn torch's errors about memory into `OutOfMemory`."""
    try:
        with torch.inference_mode():
            yield
    except RuntimeError as error:
        message = str(error).lower()
        is_memory = isinstance(error, torch.OutOfMemoryError)
        if is_memory or any(words in message for words in NO_MEMORY):
            raise OutOfMemory(str(error)) from error
        raise
