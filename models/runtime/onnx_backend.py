"""Run stages and exit heads with ONNX Runtime on the host."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime as ort

from models.backend import HeadOutput, OutOfMemory, Part, State, gather_arrays, join_states
from models.onnx_file import refuse_external_data

Provider = str | tuple[str, dict[str, str]]
CUDA_PROVIDER = "CUDAExecutionProvider"
Memory = tuple[str, int]  # ONNX Runtime's name and number of a device's memory
HOST: Memory = ("cpu", 0)

# Parts of ONNX Runtime's messages about memory: its arenas, C++, CUDA, and CUDA's libraries.
NO_MEMORY = ("failed to allocate memory", "bad_alloc", "out of memory", "alloc_failed")
# On a CPU the fused kernel makes texts 7 to 9 % slower than the nodes that it replaces.
SLOW_ON_CPU = ("SkipLayerNormFusion",)


class Device(NamedTuple):
    """A device that sessions run on.

    Attributes:
        name: `cpu`, `cuda:0`, ...
        providers: ONNX Runtime's execution providers, the CPU last.
    """

    name: str
    providers: list[Provider]

    @property
    def memory(self) -> Memory:
        """Memory that holds states between stages."""
        kind, _, index = self.name.partition(":")
        return ("cuda", int(index)) if kind in ("cuda", "tensorrt") else HOST

    @property
    def for_copies(self) -> "Device":
        """Device for graphs that only copy rows; leaves out TensorRT, which would compile them."""
        return self._replace(providers=self.providers[-2:])

    def with_memory_limit(self, limit_mib: int | None) -> "Device":
        """Bound the arena of each session on a GPU; other devices stay as they are.

        ONNX Runtime gives every session an arena of its own, which also holds its weights.

        Args:
            limit_mib: The bound; None: no bound.
        """
        if limit_mib is None:
            return self
        limit = {"gpu_mem_limit": str(limit_mib * 2**20)}
        providers: list[Provider] = []
        for provider in self.providers:
            if isinstance(provider, tuple) and provider[0] == CUDA_PROVIDER:
                provider = (provider[0], provider[1] | limit)
            providers.append(provider)
        return self._replace(providers=providers)


CPU = Device("cpu", ["CPUExecutionProvider"])


class Graph(NamedTuple):
    """A session and the names of its inputs and outputs."""

    session: ort.InferenceSession
    inputs: list[str]
    outputs: list[str]

    def run(self, state: State) -> list[Any]:
        """Run the graph on arrays of the host.

        Raises:
            OutOfMemory: If the memory is short; a smaller batch may fit.
        """
        try:
            return list(self.session.run(self.outputs, dict(zip(self.inputs, state, strict=True))))
        except Exception as error:
            raise_if_out_of_memory(error)
            raise


class OnnxBackend:
    """Run stages and heads on arrays of the host, one session per graph.

    All engine workers share the sessions. By default a run uses the worker's thread alone: the
    workers are the parallelism, and more threads would compete with them for the cores.

    Args:
        stages: Files of the K stage graphs.
        heads: Files of the K exit heads.
        device: A device that takes arrays of the host: the CPU, or one of OpenVINO.
        row_independent: Whether the graphs give a row the same output in any batch. If not, as
            where one scale is computed for a whole tensor, they are given one row at a time.
        threads_per_run: Threads that one run of a graph uses.

    Raises:
        ValueError: If a graph cannot be loaded; the message names its file.
    """

    def __init__(
        self,
        stages: Sequence[Path],
        heads: Sequence[Path],
        device: Device = CPU,
        *,
        row_independent: bool = True,
        threads_per_run: int = 1,
    ) -> None:
        self.device = device.name
        self._row_independent = row_independent
        self._stages = open_graphs(stages, device, threads_per_run)
        self._heads = open_graphs(heads, device, threads_per_run)

    @property
    def num_exits(self) -> int:
        """Number of exits, K."""
        return len(self._heads)

    def gather(self, parts: Sequence[Part]) -> State:
        """Join the rows of all parts; one part that is its whole batch is returned as it is."""
        state, rows = parts[0]
        if len(parts) == 1 and list(rows) == list(range(len(state[0]))):
            return state
        return gather_arrays(parts)

    def run_stage(self, stage: int, state: State) -> State:
        """Run one stage graph."""
        return self._run(self._stages[stage], state)

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Run one head graph."""
        return HeadOutput(*self._run(self._heads[exit], state))

    def synchronize(self) -> None:
        """Do nothing: every call returns only when its result is ready."""

    def _run(self, graph: Graph, state: State) -> State:
        if self._row_independent or len(state[0]) == 1:
            return tuple(graph.run(state))
        single = [tuple(array[row : row + 1] for array in state) for row in range(len(state[0]))]
        return join_states([tuple(graph.run(each)) for each in single])


def open_graph(source: Path | bytes, device: Device, threads_per_run: int = 1) -> Graph:
    """Load a graph that any number of threads may run at once.

    Args:
        source: The graph's file, or the content of such a file.
        device: The device that runs it.
        threads_per_run: Threads that one run uses, on a GPU for what the CPU does of it.

    Raises:
        ValueError: If the graph cannot be loaded, or keeps weights in another file; the message
            names its file.
    """
    refuse_external_data(source)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads_per_run
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if device == CPU:
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        session = ort.InferenceSession(
            source,
            options,
            providers=device.providers,
            enable_fallback=0,
            disabled_optimizers=SLOW_ON_CPU if device == CPU else (),
        )
    except Exception as error:  # ONNX Runtime does not export its exception types
        name = source if isinstance(source, Path) else "the graph in memory"
        raise ValueError(
            f"{name} is not a graph that ONNX Runtime {ort.__version__} can load on "
            f"{device.name}: {error}"
        ) from error
    return Graph(
        session,
        [value.name for value in session.get_inputs()],
        [value.name for value in session.get_outputs()],
    )


@functools.cache
def _share_arena() -> None:
    """Let all sessions of this process take their memory on the CPU from one arena.

    With an arena of its own, every stage finds its activations in memory that no cache holds, since
    other stages have run in between. Texts take up to a fifth longer then.
    """
    arena = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = ort.OrtMemoryInfo("Cpu", arena, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def open_graphs(paths: Sequence[Path], device: Device, threads_per_run: int = 1) -> list[Graph]:
    """Load one graph per file."""
    return [open_graph(path, device, threads_per_run) for path in paths]


def raise_if_out_of_memory(error: Exception) -> None:
    """Raise `OutOfMemory` if an error of ONNX Runtime means that memory is short.

    Raises:
        OutOfMemory: If it does.
    """
    message = str(error).lower()
    if isinstance(error, MemoryError) or any(words in message for words in NO_MEMORY):
        raise OutOfMemory(str(error)) from error
