"""Steps of a network captured as CUDA graphs: launched by one call instead of one a kernel."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Step = Callable[[Tensors], Tensors]

WARM_UP = 3  # runs before a capture, in which libraries choose their kernels


class Captured(NamedTuple):
    """A step of fixed shapes.

    Attributes:
        inputs: What it reads, to be overwritten before a replay.
        replay: Runs it.
        outputs: What it wrote, until the next replay.
    """

    inputs: Tensors
    replay: Callable[[], None]
    outputs: Tensors


Capture = Callable[[Step, Tensors], Captured]


class CapturedSteps:
    """Steps that are captured once for every shape of their inputs, when it first comes.

    They share the memory of what lies between input and output, so one is replayed at a time.

    Args:
        capture: Makes a captured step of a step and an example of its inputs.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._lock = threading.Lock()

    def step(self, step: Step) -> Step:
        """A step that does the same by replays; what it gives is nobody else's."""
        captured: dict[tuple[torch.Size, ...], Captured] = {}

        def replayed(values: Tensors) -> Tensors:
            shapes = tuple(value.shape for value in values)
            with self._lock:
                if shapes not in captured:
                    captured[shapes] = self._capture(step, values)
                inputs, replay, outputs = captured[shapes]
                for place, value in zip(inputs, values, strict=True):
                    place.copy_(value)
                replay()
                return tuple(output.clone() for output in outputs)

        return replayed


def capture_on(device: torch.device) -> Capture:
    """What captures steps on a GPU."""
    pool: Any = torch.cuda.graph_pool_handle()

    def capture(step: Step, values: Tensors) -> Captured:
        inputs = tuple(value.clone() for value in values)
        with torch.cuda.device(device):
            for _ in range(WARM_UP):
                step(inputs)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                outputs = step(inputs)
        return Captured(inputs, graph.replay, outputs)

    return capture
