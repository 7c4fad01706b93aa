"""Capture steps of a network as CUDA graphs: one launch per step instead of one per kernel."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Step = Callable[[Tensors], Tensors]

WARM_UP = 3  # runs before a capture, while libraries choose their kernels


class Captured(NamedTuple):
    """A captured step, for inputs of fixed shapes.

    Attributes:
        inputs: Tensors that the step reads; overwrite them before a replay.
        replay: Runs the step.
        outputs: Tensors that the step wrote; valid until the next replay.
    """

    inputs: Tensors
    replay: Callable[[], None]
    outputs: Tensors


Capture = Callable[[Step, Tensors], Captured]


class CapturedSteps:
    """Capture each step when an input shape first occurs, and replay it from then on.

    All captured steps share the memory of their intermediate tensors, so a lock replays one at a
    time.

    Args:
        capture: Captures a step, given an example of its inputs.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._lock = threading.Lock()

    def step(self, step: Step) -> Step:
        """Wrap a step so that it runs by replay; its outputs are copies that the caller owns."""
        captured: dict[tuple[torch.Size, ...], Captured] = {}

        def replayed(values: Tensors) -> Tensors:
            shapes = tuple(value.shape for value in values)
            with self._lock:
                if shapes not in captured:
                    captured[shapes] = self._capture(step, values)
                inputs, replay, outputs = captured[shapes]
                for target, value in zip(inputs, values, strict=True):
                    target.copy_(value)
                replay()
                return tuple(output.clone() for output in outputs)

        return replayed


def capture_on(device: torch.device) -> Capture:
    """Return a function that captures steps on a GPU."""
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
