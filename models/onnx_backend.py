"""ONNX Runtime beneath the engine."""

import logging
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from models.backend import HeadOutput, State

log = logging.getLogger(__name__)

Provider = str | tuple[str, dict[str, int]]


class OnnxBackend:
    """One session per graph, one thread each, shared by all engine workers.

    Parallelism comes from the workers: a session of several threads would fight them for the cores.

    Args:
        stages: Files of the K stage graphs.
        heads: Files of the K exit heads.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`: a GPU where the installed runtime has a provider
            for it.

    Raises:
        ValueError: If a graph cannot be loaded, naming its file, or the device is not to be had.
    """

    def __init__(self, stages: Sequence[Path], heads: Sequence[Path], device: str = "cpu") -> None:
        self.device, providers = choose_providers(device, ort.get_available_providers())
        if self.device != "cpu":
            ort.preload_dlls()  # CUDA and cuDNN from the wheels of the `gpu` extra
        self._stages = [_session(path, providers) for path in stages]
        self._heads = [_session(path, providers) for path in heads]
        if self.device != "cpu" and "CUDAExecutionProvider" not in self._stages[0].get_providers():
            if device != "auto":
                raise ValueError(
                    f"device {device!r} is not to be had: ONNX Runtime's CUDA provider does not "
                    f"load here"
                )
            log.info("ONNX Runtime's CUDA provider does not load here; serving on the CPU")
            self.device = "cpu"
        self._inputs = [_input_names(session) for session in self._stages]
        self._head_inputs = [_input_names(session) for session in self._heads]

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self._heads)

    def run_stage(self, stage: int, state: State) -> State:
        """Run one stage graph."""
        given = dict(zip(self._inputs[stage], state, strict=True))
        return tuple(self._stages[stage].run(None, given))

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Run one head graph."""
        given = dict(zip(self._head_inputs[exit], state, strict=True))
        return HeadOutput(*self._heads[exit].run(None, given))


def choose_providers(device: str, available: Sequence[str]) -> tuple[str, list[Provider]]:
    """The device that is used and ONNX Runtime's providers for it.

    Args:
        device: As `OnnxBackend` takes it.
        available: The providers of the installed runtime.

    Raises:
        ValueError: If a GPU is asked for and the runtime has no provider for it.
    """
    cpu: list[Provider] = ["CPUExecutionProvider"]
    has_cuda = "CUDAExecutionProvider" in available
    if device == "cpu" or (device == "auto" and not has_cuda):
        if device == "auto":
            log.info("this ONNX Runtime has no CUDA provider; serving on the CPU")
        return "cpu", cpu
    if not has_cuda:
        raise ValueError(
            f"device {device!r} needs the gpu runtime; install the extra `gpu` instead of `cpu`"
        )
    index = int(device.partition(":")[2] or 0)
    return f"cuda:{index}", [("CUDAExecutionProvider", {"device_id": index}), *cpu]


def _session(path: Path, providers: list[Provider]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(path, options, providers=providers)
    except Exception as error:  # the runtime has its own exception types, which it does not export
        raise ValueError(
            f"{path} is not a graph that ONNX Runtime {ort.__version__} can load: {error}"
        ) from error


def _input_names(session: ort.InferenceSession) -> list[str]:
    return [given.name for given in session.get_inputs()]
