"""How the engine's tests make, feed and drain an engine."""

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from models.backend import State
from scheduler.baselines import ConfidencePolicy, PatiencePolicy
from scheduler.policy import ExitPolicy
from scheduler.thresholds import ThresholdTable
from server.engine.engine import Engine
from server.engine.request import InferenceRequest, Prediction
from tests.fakes import FakeBackend

NEVER = math.inf


def sure(*confidences: float) -> State:
    """The input of one row: its confidence at each exit."""
    return (np.array([confidences], np.float32),)


def table(first: float, second: float) -> ThresholdTable:
    """Parameter 1: exits fire at these scores; parameter 2: nothing fires early."""
    thresholds = np.array([[first, second, -NEVER], [NEVER, NEVER, -NEVER]])
    return ThresholdTable(np.array([1.0, 2.0]), thresholds)


def policy() -> ConfidencePolicy:
    """At parameter 1 exits fire at confidences of 0.9 and 0.8."""
    return ConfidencePolicy(table(0.9, 0.8), "maxprob")


def remembering() -> PatiencePolicy:
    """Fires as `policy` does, as long as it has seen every exit of a row."""
    return PatiencePolicy(table(1.9, 2.8))


def engine_of(
    backend: Any,
    on_batch: Callable[[list[InferenceRequest]], None] = lambda completions: None,
    *,
    by: ExitPolicy | None = None,
    parameter: float = 1.0,
    max_batch: int = 1,
    workers: int = 1,
    **options: Any,
) -> Engine:
    """An engine that has not been started."""
    return Engine(
        backend,
        by or policy(),
        parameter,
        workers=workers,
        max_batch=max_batch,
        on_done=on_batch,
        **options,
    )


def run_out(engine: Engine) -> None:
    """Start it, let it answer what is in, end it."""
    engine.start()
    engine.stop()


def serve(
    rows: list[InferenceRequest], backend: Any = None, **options: Any
) -> dict[int, InferenceRequest]:
    """Run rows to completion; completions by the row's place in the list."""
    done: list[InferenceRequest] = []
    lock = threading.Lock()

    def on_batch(completions: list[InferenceRequest]) -> None:
        with lock:
            done.extend(completions)

    engine = engine_of(backend or FakeBackend(), on_batch, **options)
    engine.submit(rows)
    run_out(engine)
    assert len({id(completion) for completion in done}) == len(done)
    return {rows.index(completion): completion for completion in done}


def exits_of(done: dict[int, InferenceRequest]) -> list[int]:
    """The exits of rows that were all answered, in their order."""
    outcomes = [done[index].result for index in range(len(done))]
    assert all(isinstance(outcome, Prediction) for outcome in outcomes), outcomes
    return [outcome.exit for outcome in outcomes]  # type: ignore[union-attr]


class StepClock:
    """A clock that each stage moves by one second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def step(self, stage: int) -> None:
        self.now += 1.0


def opened_late(backend: Any, by: ExitPolicy, closed: float, opened: float) -> list[int]:
    """Exits of three rows, the first traced, where exits open once a row has been through stage 0.

    All batches are then of two rows: the second and third fill one before the first comes further.
    """
    done: list[InferenceRequest] = []

    def arrange(stage: int) -> None:
        engine.max_batch = 2
        if stage == 1:
            engine.parameter = opened

    backend.on_stage = arrange
    engine = engine_of(backend, done.extend, by=by, parameter=closed, max_batch=1)
    rows = [
        InferenceRequest(sure(0.85, 0.94 + place / 100, 0.95), traced=place == 0)
        for place in range(3)
    ]
    engine.submit(rows)
    run_out(engine)
    assert backend.stage_rows[0] == backend.stage_rows[1] == 3, "no batch is run twice"
    return exits_of({rows.index(completion): completion for completion in done})
