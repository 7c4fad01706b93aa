"""ONNX Runtime on an accelerator: states stay there between stages."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from models.backend import HeadOutput, Part, State, gather_arrays, is_whole
from models.runtime.buckets import check_buckets, padded
from models.runtime.onnx_session import (
    HOST,
    Device,
    Graph,
    Memory,
    open_graph,
    open_graphs,
    raise_if_out_of_memory,
)
from models.runtime.row_graph import Kind, row_graph


class DeviceOnnxBackend:
    """One session per graph, and states that are OrtValues in the device's memory.

    Stage 0 copies its arrays there, heads fetch their answers, nothing else moves. The runtime's
    arena allocates what stages put out: buffers of our own would have to know when the last waiting
    row leaves a batch, and would save less than a tenth of what a bound run costs besides its
    graph.

    Args:
        stages: Files of the K stage graphs.
        heads: Files of the K exit heads.
        device: A GPU; the CPU works as one does.
        buckets: Batch sizes, rising, to which `gather` fills batches up; none: as they come.

    Raises:
        ValueError: If a graph cannot be loaded, naming its file, or the buckets do not rise.
    """

    def __init__(
        self,
        stages: Sequence[Path],
        heads: Sequence[Path],
        device: Device,
        buckets: Sequence[int] = (),
    ) -> None:
        self.device = device.name
        self.buckets = check_buckets(buckets)
        self._memory = device.memory
        self._stages = open_graphs(stages, device)
        self._heads = open_graphs(heads, device)
        self._joiner = RowJoiner(device)

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self._heads)

    def gather(self, parts: Sequence[Part]) -> State:
        """Pick and join rows where they are, filled up to the next bucket."""
        wanted = padded(parts, self.buckets)
        first = wanted[0]
        if isinstance(first.state[0], np.ndarray):
            return gather_arrays(wanted)
        if len(wanted) == 1 and is_whole(first, first.state[0].shape()[0]):
            return first.state
        return self._joiner.join(wanted)

    def run_stage(self, stage: int, state: State) -> State:
        """Run one stage graph; what it puts out stays on the device."""
        return run_bound(self._stages[stage], state, self._memory, self._memory)

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Run one head graph and fetch its answers."""
        said = run_bound(self._heads[exit], state, self._memory, HOST)
        return HeadOutput(*(value.numpy() for value in said))

    def synchronize(self) -> None:
        """Nothing: every run waits for the device."""


class RowJoiner:
    """Makes one batch of rows of several by small graphs, each made when it is first needed.

    A graph takes a power of two of parts, so that there are few: where parts are missing, batches
    that give no rows stand in.
    """

    def __init__(self, device: Device) -> None:
        self._device = device.for_copies
        self._graphs: dict[tuple[tuple[Kind, ...], int], Graph] = {}
        self._lock = threading.Lock()

    def join(self, parts: Sequence[Part]) -> State:
        """The parts' rows in their order.

        Raises:
            OutOfMemory: If a smaller batch might do.
        """
        kinds = tuple(Kind(value.element_type(), len(value.shape())) for value in parts[0].state)
        size = 1 << (len(parts) - 1).bit_length()
        every = [*parts, *[Part(parts[0].state, ())] * (size - len(parts))]
        rows = [np.array(part.rows, np.int64) for part in every]
        values = [part.state[t] for t in range(len(kinds)) for part in every]
        memory = self._device.memory
        return run_bound(self._graph(kinds, size), [*rows, *values], memory, memory)

    def _graph(self, kinds: tuple[Kind, ...], num_parts: int) -> Graph:
        key = (kinds, num_parts)
        with self._lock:
            if key not in self._graphs:
                self._graphs[key] = open_graph(row_graph(kinds, num_parts), self._device)
            return self._graphs[key]


def run_bound(graph: Graph, values: Sequence[Any], memory: Memory, to: Memory) -> State:
    """Run a graph with what goes in and comes out bound to where it lies.

    Args:
        graph: Its names are those of the values, in order.
        values: OrtValues of the graph's device, or arrays that are copied there.
        memory: The device's.
        to: Where to put what comes out.

    Raises:
        OutOfMemory: If a smaller batch might do.
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
