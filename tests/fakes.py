"""Fakes that several tests share."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.backend import HeadOutput, OutOfMemory, Part, State, gather_arrays
from server.engine.request import InferenceRequest


class RecordingObserver:
    """Keeps what an engine reports."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, float]] = []
        self.scores: list[tuple[int, list[float], float]] = []
        self.cancelled = 0
        self._lock = threading.Lock()

    def on_start(self, requests: Sequence[InferenceRequest]) -> None:
        pass

    def on_step(self, stage: int, rows: int, elapsed_ms: float) -> None:
        self.steps.append((stage, rows, elapsed_ms))

    def on_scores(self, exit: int, scores: NDArray[np.float64], parameter: float) -> None:
        self.scores.append((exit, np.round(scores, 6).tolist(), parameter))

    def on_cancelled(self, count: int) -> None:
        with self._lock:
            self.cancelled += count

    def take_scores(self) -> list[tuple[int, list[float], float]]:
        taken, self.scores = self.scores, []
        return taken


class FakeBackend:
    """Three exits; a row's input is its max probability at every exit.

    POISON in place of one makes that stage fail, HUGE makes it run out of memory. Counts the rows
    that each stage has run, and notes the heads and what batches were made of.

    Args:
        on_stage: Told before every stage.
        memory: Most rows of a batch that fit.
        multiple: Batches are filled up to multiples of it by copies of the last row.
    """

    num_exits = 3
    device = "fake"
    POISON, HUGE = -1.0, -2.0

    def __init__(
        self,
        on_stage: Callable[[int], None] = lambda stage: None,
        memory: int = 1000,
        multiple: int = 1,
    ) -> None:
        self.stage_rows: Counter[int] = Counter()
        self.batches: list[tuple[int, list[float]]] = []
        self.heads: list[int] = []
        self.parts: list[list[int]] = []  # rows of each part of each batch
        self.on_stage = on_stage
        self.memory = memory
        self.multiple = multiple

    def gather(self, parts: Sequence[Part]) -> State:
        self.parts.append([len(part.rows) for part in parts])
        *others, last = parts
        copies = -sum(len(part.rows) for part in parts) % self.multiple
        return gather_arrays([*others, Part(last.state, [*last.rows, *[last.rows[-1]] * copies])])

    def run_stage(self, stage: int, state: State) -> State:
        self.on_stage(stage)
        shown = state[0][:, stage]
        self.stage_rows[stage] += len(shown)
        self.batches.append((stage, shown.tolist()))
        if len(shown) > self.memory or (shown == self.HUGE).any():
            raise OutOfMemory(f"{len(shown)} rows")
        if (shown == self.POISON).any():
            raise RuntimeError("poisoned row")
        return state

    def run_head(self, exit: int, state: State) -> HeadOutput:
        self.heads.append(exit)
        best = state[0][:, exit]
        log_probs = np.log(np.stack([best, 1 - best], 1))
        return HeadOutput(log_probs, log_probs)

    def synchronize(self) -> None:
        pass
