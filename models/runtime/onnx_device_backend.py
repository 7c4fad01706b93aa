"""Run stages and exit heads with ONNX Runtime on an accelerator; states stay on the device."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from models.backend import (
    HeadOutput,
    Part,
    State,
    check_buckets,
    gather_arrays,
    is_whole,
    pad_to_bucket,
)
from models.runtime.onnx_backend import (
    HOST,
    Device,
    Graph,
    Memory,
    open_graph,
    open_graphs,
    raise_if_out_of_memory,
)
from models.runtime.row_graph import TensorType, row_graph


class DeviceOnnxBackend:
    """Run stages and heads on OrtValues in the device's memory, one session per graph.

    Stage 0 copies its arrays to the device and heads copy their results back; nothing else moves.
    ONNX Runtime's arena allocates the outputs of stages. Our own buffers would have to track when
    the last waiting row of a batch is gone, and would save less than a tenth of the overhead of a
    bound run.

    Args:
        stages: Files of the K stage graphs.
        heads: Files of the K exit heads.
        device: A GPU. The CPU works too, which the tests use.
        buckets: Batch sizes, increasing, to which `gather` pads; empty: no padding.
        threads_per_run: Threads that a run uses for what the CPU does of it.

    Raises:
        ValueError: If a graph cannot be loaded (the message names its file), or the buckets do not
            increase.
    """

    def __init__(
        self,
        stages: Sequence[Path],
        heads: Sequence[Path],
        device: Device,
        buckets: Sequence[int] = (),
        *,
        threads_per_run: int = 1,
    ) -> None:
        self.device = device.name
        self.buckets = check_buckets(buckets)
        self._memory = device.memory
        self._stages = open_graphs(stages, device, threads_per_run)
        self._heads = open_graphs(heads, device, threads_per_run)
        self._joiner = RowJoiner(device)

    @property
    def num_exits(self) -> int:
        """Number of exits, K."""
        return len(self._heads)

    def gather(self, parts: Sequence[Part]) -> State:
        """Join the rows of all parts where they are, padded to the next bucket."""
        padded = pad_to_bucket(parts, self.buckets)
        first = padded[0]
        if isinstance(first.state[0], np.ndarray):
            return gather_arrays(padded)
        if len(padded) == 1 and is_whole(first, first.state[0].shape()[0]):
            return first.state
        return self._joiner.join(padded)

    def run_stage(self, stage: int, state: State) -> State:
        """Run one stage graph; its outputs stay on the device."""
        return run_bound(self._stages[stage], state, self._memory, self._memory)

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Run one head graph and copy its outputs to the host."""
        outputs = run_bound(self._heads[exit], state, self._memory, HOST)
        return HeadOutput(*(value.numpy() for value in outputs))

    def synchronize(self) -> None:
        """Do nothing: every run waits for the device."""


class RowJoiner:
    """Join rows of several batches with small graphs, each built when it is first needed.

    A graph takes a power of two of parts, so few graphs are needed. Parts without rows fill the
    rest.
    """

    def __init__(self, device: Device) -> None:
        self._device = device.for_copies
        self._graphs: dict[tuple[tuple[TensorType, ...], int], Graph] = {}
        self._lock = threading.Lock()

    def join(self, parts: Sequence[Part]) -> State:
        """Join the rows of all parts, in their order.

        Raises:
            OutOfMemory: If the device's memory is short; a smaller batch may fit.
        """
        types = tuple(
            TensorType(value.element_type(), len(value.shape())) for value in parts[0].state
        )
        num_parts = 1 << (len(parts) - 1).bit_length()
        all_parts = [*parts, *[Part(parts[0].state, ())] * (num_parts - len(parts))]
        rows = [np.array(part.rows, np.int64) for part in all_parts]
        values = [part.state[t] for t in range(len(types)) for part in all_parts]
        memory = self._device.memory
        return run_bound(self._graph(types, num_parts), [*rows, *values], memory, memory)

    def _graph(self, types: tuple[TensorType, ...], num_parts: int) -> Graph:
        key = (types, num_parts)
        with self._lock:
            if key not in self._graphs:
                self._graphs[key] = open_graph(row_graph(types, num_parts), self._device)
            return self._graphs[key]


def run_bound(graph: Graph, values: Sequence[Any], memory: Memory, to: Memory) -> State:
    """Run a graph with its inputs and outputs bound to memory (ONNX Runtime's IO binding).

    Args:
        graph: The graph; its inputs are the values, in order.
        values: OrtValues on the graph's device, or arrays, which are copied there.
        memory: The device's memory.
        to: The memory for the outputs.

    Raises:
        OutOfMemory: If the device's memory is short; a smaller batch may fit.
    """
    binding = graph.session.io_binding()
    try:
        for name, value in zip(graph.inputs, values, strict=True):
            if isinstance(value, np.ndarray):
                value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), *memory)
            binding.bind_ortvalue_input(name, value)
        for name in graph.outputs:
            binding.bind_output(name, *to)
        graph.session.run_with_iobinding(binding)
    except Exception as error:
        raise_if_out_of_memory(error)
        raise
    return tuple(binding.get_outputs())
