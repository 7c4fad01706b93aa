"""torch beneath the engine: the network itself instead of its graphs."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.backend import HeadOutput, OutOfMemory, Part, State, gather_arrays, is_whole
from models.bundle import Bundle, BundleError
from models.networks.families import Network
from models.networks.multi_exit import MultiExitModel
from models.runtime.buckets import check_buckets, padded
from models.runtime.cuda_graphs import CapturedSteps, Step, Tensors, capture_on
from models.runtime.served_head import ServedHead

log = logging.getLogger(__name__)

Mode = Literal["eager", "compile", "cuda-graphs"]
# What torch says when memory is short where it has no exception type for it.
NO_MEMORY = ("can't allocate memory", "alloc_failed")


class TorchBackend:
    """Stages and heads of a network in evaluation mode; states are tensors on its device.

    On a CPU every call uses as many threads as the process has set.

    Args:
        model: Put into evaluation mode and onto the device.
        device: `cpu`, `cuda` or `cuda:N`.
        mode: `eager`; `compile`, each stage and head by `torch.compile` when it first runs;
            `cuda-graphs`, each captured for every shape of batch that comes.
        buckets: Batch sizes, rising, to which `gather` fills batches up; none: as they come.

    Raises:
        ValueError: If the mode is unknown or not one of the device.
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
        self._place = torch.device(device)
        if mode == "cuda-graphs" and self._place.type != "cuda":
            raise ValueError(f"mode 'cuda-graphs' needs a GPU, device {device!r} is none")
        self.device = str(self._place)
        self.buckets = check_buckets(buckets)
        model.eval().to(self._place)
        self._stages = [_step(stage, mode) for stage in model.stages]
        self._heads = [_step(ServedHead(head).eval(), mode) for head in model.heads]
        if mode == "cuda-graphs":
            captured = CapturedSteps(capture_on(self._place))
            self._stages = [captured.step(stage) for stage in self._stages]
            self._heads = [captured.step(head) for head in self._heads]

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self._heads)

    def gather(self, parts: Sequence[Part]) -> State:
        """Pick and join rows where they are, filled up to the next bucket."""
        wanted = padded(parts, self.buckets)
        if isinstance(wanted[0].state[0], np.ndarray):
            return gather_arrays(wanted)
        with _serving():
            picked = [_picked(part) for part in wanted]
            if len(picked) == 1:
                return picked[0]
            return tuple(torch.cat(tensors) for tensors in zip(*picked, strict=True))

    def run_stage(self, stage: int, state: State) -> State:
        """Run one stage; what it puts out stays on the device."""
        with _serving():
            return self._stages[stage](tuple(self._placed(value) for value in state))

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Run one head and fetch its answers."""
        with _serving():
            said = self._heads[exit](tuple(self._placed(value) for value in state))
            fetched = [answer.to("cpu", non_blocking=True) for answer in said]
            self.synchronize()
            return HeadOutput(*(answer.numpy() for answer in fetched))

    def synchronize(self) -> None:
        """Wait for what the calling thread told a GPU to do."""
        if self._place.type == "cuda":
            torch.cuda.current_stream(self._place).synchronize()

    def _placed(self, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value
        return torch.tensor(value, device=self._place)


def open_torch_backend(
    bundle: Bundle, device: str = "auto", mode: Mode = "eager", buckets: Sequence[int] = ()
) -> TorchBackend:
    """The network that a bundle holds beside its graphs.

    Args:
        bundle: Built with `--torch-weights`.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`: a GPU where torch sees one.
        mode: As `TorchBackend` takes it.
        buckets: Likewise.

    Raises:
        ValueError: If the bundle holds no network or another's weights, or the device is not to be
            had.
    """
    network, weights = bundle.manifest.network, bundle.torch_weights
    if network is None or weights is None:
        raise BundleError(
            f"{bundle.folder} holds no weights for torch; build it with --torch-weights"
        )
    place = choose_torch_device(device)
    try:
        model = Network(network.arch, network.settings).build()
        model.load_state_dict(load_file(weights))
    except (ValueError, RuntimeError) as error:  # of settings, of tensors
        raise BundleError(
            f"{weights} does not fit the bundle's network {network.arch}; build the bundle again"
        ) from error
    if place == "cpu":
        # Engine workers are the parallelism. The setting is the whole process's, so it is made
        # here, where a server starts, and not by every backend.
        torch.set_num_threads(1)
    return TorchBackend(model, place, mode, buckets)


def choose_torch_device(device: str) -> str:
    """The device that is used, by torch's name.

    Raises:
        ValueError: If it is none of torch's, or not available.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {device!r} is none of the torch backend's; use auto, cpu or cuda")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        if kind == "auto":
            log.info("torch sees no GPU; serving on the CPU")
        return "cpu"
    if int(index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not available: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} GPUs here"
        )
    return f"cuda:{int(index or 0)}"


def _step(module: nn.Module, mode: Mode) -> Step:
    """A stage or head as tensors in, tensors out."""
    run = torch.compile(module) if mode == "compile" else module

    def step(values: Tensors) -> Tensors:
        made = run(values[0] if len(values) == 1 else values)
        return made if isinstance(made, tuple) else (made,)

    return step


def _picked(part: Part) -> Tensors:
    tensors: Tensors = part.state
    if is_whole(part, len(tensors[0])):
        return tensors
    if len(part.rows) == 1:
        return tuple(tensor[part.rows[0] : part.rows[0] + 1] for tensor in tensors)
    rows = torch.tensor(part.rows, device=tensors[0].device)
    return tuple(tensor.index_select(0, rows) for tensor in tensors)


@contextmanager
def _serving() -> Iterator[None]:
    """No gradients; a lack of memory by the name that engines know."""
    try:
        with torch.inference_mode():
            yield
    except RuntimeError as error:
        said = str(error).lower()
        short = isinstance(error, torch.OutOfMemoryError)
        if short or any(words in said for words in NO_MEMORY):
            raise OutOfMemory(str(error)) from error
        raise
