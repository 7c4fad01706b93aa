"""ONNX Runtime beneath the engine."""

from collections.abc import Sequence
from pathlib import Path

from models.backend import HeadOutput, Part, State, gather_arrays
from models.runtime.onnx_device_backend import DeviceOnnxBackend
from models.runtime.onnx_session import CPU, HOST, Device, open_device, open_graphs


class OnnxBackend:
    """One session per graph, one thread each, shared by all engine workers; arrays on the host.

    Parallelism comes from the workers: a session of several threads would fight them for the cores.

    Args:
        stages: Files of the K stage graphs.
        heads: Files of the K exit heads.
        device: One that takes arrays of the host: the CPU, or OpenVINO's.

    Raises:
        ValueError: If a graph cannot be loaded, naming its file.
    """

    def __init__(self, stages: Sequence[Path], heads: Sequence[Path], device: Device = CPU) -> None:
        self.device = device.name
        self._stages = open_graphs(stages, device)
        self._heads = open_graphs(heads, device)

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self._heads)

    def gather(self, parts: Sequence[Part]) -> State:
        """Pick and join rows."""
        return gather_arrays(parts)

    def run_stage(self, stage: int, state: State) -> State:
        """Run one stage graph."""
        return tuple(self._stages[stage].run(state))

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Run one head graph."""
        return HeadOutput(*self._heads[exit].run(state))

    def synchronize(self) -> None:
        """Nothing: every call waits for its answer."""


def open_onnx_backend(
    stages: Sequence[Path],
    heads: Sequence[Path],
    device: str = "auto",
    buckets: Sequence[int] = (),
) -> OnnxBackend | DeviceOnnxBackend:
    """The backend over graphs that suits a device.

    Args:
        stages: Files of the K stage graphs.
        heads: Files of the K exit heads.
        device: As `choose_device` takes it; `auto` is the CPU where CUDA's provider does not load.
        buckets: Batch sizes that a GPU is given, rising; any if there are none.

    Raises:
        ValueError: If a graph cannot be loaded, naming its file, or the device is not available.
    """
    opened = open_device(device)
    if opened.memory == HOST:
        return OnnxBackend(stages, heads, opened)
    return DeviceOnnxBackend(stages, heads, opened, buckets)
