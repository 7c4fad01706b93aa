"""Sessions of ONNX Runtime, and the devices that they run on."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime as ort

from models.backend import OutOfMemory, State
from models.runtime.row_graph import Kind, row_graph

log = logging.getLogger(__name__)

Provider = str | tuple[str, dict[str, str]]
Memory = tuple[str, int]  # as the runtime names and numbers it
HOST: Memory = ("cpu", 0)

# What the runtime says when memory is short: its arenas, C++, CUDA, and CUDA's libraries.
NO_MEMORY = ("failed to allocate memory", "bad_alloc", "out of memory", "alloc_failed")
# Of texts on a CPU the fused kernel takes 7 to 9 % longer than the nodes that it replaces.
SLOW_ON_CPU = ("SkipLayerNormFusion",)


class _Kind(NamedTuple):
    """A kind of device beside the CPU.

    Attributes:
        provider: ONNX Runtime's name of it.
        option: The provider's option that says which of them.
        first: Which one, where none is named.
        remedy: What gives the runtime this provider.
        others: Kinds that take what it cannot run, before the CPU.
    """

    provider: str
    option: str
    first: str
    remedy: str
    others: tuple[str, ...] = ()


_GPU = "needs the gpu runtime; install the extra `gpu` instead of `cpu`"
_KINDS = {
    "cuda": _Kind("CUDAExecutionProvider", "device_id", "0", _GPU),
    "tensorrt": _Kind("TensorrtExecutionProvider", "device_id", "0", _GPU, ("cuda",)),
    "openvino": _Kind(
        "OpenVINOExecutionProvider",
        "device_type",
        "CPU",
        "needs the OpenVINO runtime; install onnxruntime-openvino instead of the extra `cpu`",
    ),
}


class Device(NamedTuple):
    """Where sessions run.

    Attributes:
        name: `cpu`, `cuda:0`, ...
        providers: ONNX Runtime's, the CPU last.
    """

    name: str
    providers: list[Provider]

    @property
    def memory(self) -> Memory:
        """Where states stay between stages."""
        kind, _, which = self.name.partition(":")
        return ("cuda", int(which)) if kind in ("cuda", "tensorrt") else HOST

    @property
    def for_copies(self) -> "Device":
        """The same device for graphs that only copy rows, which TensorRT would take to compile."""
        return self._replace(providers=self.providers[-2:])


CPU = Device("cpu", ["CPUExecutionProvider"])


class Graph(NamedTuple):
    """A session and the names of what goes in and comes out."""

    session: ort.InferenceSession
    inputs: list[str]
    outputs: list[str]

    def run(self, state: State) -> list[Any]:
        """What the graph makes of arrays on the host.

        Raises:
            OutOfMemory: If a smaller batch might do.
        """
        try:
            return list(self.session.run(self.outputs, dict(zip(self.inputs, state, strict=True))))
        except Exception as error:
            raise_if_out_of_memory(error)
            raise


def choose_device(device: str, available: Sequence[str]) -> Device:
    """The device that is used and ONNX Runtime's providers for it.

    Args:
        device: `cpu`, `cuda`, `cuda:N`, `tensorrt`, `tensorrt:N`, `openvino`, `openvino:DEVICE` (as
            OpenVINO names them), or `auto`: a GPU where the runtime has CUDA's provider.
        available: The providers of the installed runtime.

    Raises:
        ValueError: If the runtime has no provider for it.
    """
    if device == "auto":
        has_cuda = _KINDS["cuda"].provider in available
        if not has_cuda:
            log.info("this ONNX Runtime has no CUDA provider; serving on the CPU")
        device = "cuda" if has_cuda else "cpu"
    if device == "cpu":
        return CPU
    kind, _, which = device.partition(":")
    if kind not in _KINDS:
        raise ValueError(f"device {device!r} is unknown; use auto, cpu, {', '.join(_KINDS)}")
    wanted = _KINDS[kind]
    if wanted.provider not in available:
        raise ValueError(f"device {device!r} {wanted.remedy}")
    which = which or wanted.first
    kinds = (wanted, *(_KINDS[other] for other in wanted.others))
    providers: list[Provider] = [(kind.provider, {kind.option: which}) for kind in kinds]
    return Device(f"{kind}:{which}", [*providers, *CPU.providers])


def open_device(device: str) -> Device:
    """`choose_device` of the installed runtime, with its provider loaded.

    Raises:
        ValueError: If the runtime has no provider for it, or one that does not load; but `auto` is
            the CPU then.
    """
    chosen = choose_device(device, ort.get_available_providers())
    if chosen.memory != HOST:
        ort.preload_dlls()  # CUDA and cuDNN from the wheels of the `gpu` extra
    fault = fault_of(chosen)
    if fault is None:
        return chosen
    sentence = f"device {chosen.name!r} is not available: {fault}"
    if device != "auto":
        raise ValueError(sentence)
    log.info("%s; serving on the CPU", sentence)
    return CPU


def fault_of(device: Device) -> str | None:
    """Why a device's provider does not load, None if it does: tried with a small graph."""
    if device == CPU:
        return None
    provider, why = device.providers[0][0], ""
    try:
        if provider in open_graph(row_graph([Kind(1, 2)], 1), device).session.get_providers():
            return None
    except ValueError as error:
        why = f": {error.__cause__}"
    return f"ONNX Runtime's {provider} does not load here{why.rstrip()}"


def open_graph(source: Path | bytes, device: Device) -> Graph:
    """Load a graph for any number of threads, each of which computes on its own.

    Args:
        source: Its file, or what such a file holds.
        device: Where it runs.

    Raises:
        ValueError: If it cannot be loaded, naming its file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # parallelism comes from callers, which would be in its way
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(
            source,
            options,
            providers=device.providers,
            enable_fallback=0,
            disabled_optimizers=SLOW_ON_CPU if device == CPU else (),
        )
    except Exception as error:  # the runtime has its own exception types, which it does not export
        name = source if isinstance(source, Path) else "what is in memory"
        raise ValueError(
            f"{name} is not a graph that ONNX Runtime {ort.__version__} can load on "
            f"{device.name}: {error}"
        ) from error
    return Graph(
        session,
        [given.name for given in session.get_inputs()],
        [made.name for made in session.get_outputs()],
    )


def open_graphs(paths: Sequence[Path], device: Device) -> list[Graph]:
    """`open_graph` of each file."""
    return [open_graph(path, device) for path in paths]


def raise_if_out_of_memory(error: Exception) -> None:
    """Tell a lack of memory from the runtime's other errors.

    Raises:
        OutOfMemory: If it is one.
    """
    said = str(error).lower()
    if isinstance(error, MemoryError) or any(words in said for words in NO_MEMORY):
        raise OutOfMemory(str(error)) from error
