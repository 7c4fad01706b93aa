"""Measure what exits cost on this host, which is never the machine that built the bundle."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.backend import HeadOutput, OutOfMemory, Part, StageBackend, State
from models.stage_costs import StageCosts
from scheduler.combiner import OWN_OUTPUTS, Combiner
from scheduler.policy import ExitPolicy
from server.engine.engine import Engine
from server.engine.request import InferenceRequest, Prediction

log = logging.getLogger(__name__)

LARGEST_BATCH = 128
WARM_UP_S, MEASURE_S, BATCH_S = 0.15, 0.5, 0.1  # of batches of one row, and of each larger size
WARM_UP_ROUNDS, COST_ROUNDS = (3, 20), (20, 100)  # at least and at most
BATCH_ROUNDS = (4, 30)
OVERHEAD_ROUNDS = 50


def measure_costs(
    backend: StageBackend,
    policy: ExitPolicy,
    example: State,
    max_batch: int | None = 1,
    combiner: Combiner = OWN_OUTPUTS,
) -> StageCosts:
    """Warm up and measure what batches cost at each stage, through the engine.

    Larger batches are those of doubled sizes, up to `max_batch`; where that is None, as long as
    doubling is worth its wait. Each cost is the lower quartile: at start other processes often
    share the cores, and the time they take belongs to the controller's slowdown estimate, not to
    the stages' costs.

    Args:
        backend: Runs the stages and heads to measure.
        policy: Scores and decides, which counts as part of a stage.
        example: One input row.
        max_batch: The largest size to measure, or None.
        combiner: The policy's; it counts too.

    Raises:
        ValueError: If the network fails on the example.
    """

    def batches_ms(rows: int, rounds: int) -> NDArray[np.float64]:
        return _batches_ms(backend, policy, combiner, example, rows, rounds)

    first = batches_ms(1, 1)
    batches_ms(1, _rounds(WARM_UP_S, first, WARM_UP_ROUNDS))
    of_one = batches_ms(1, _rounds(MEASURE_S, first, COST_ROUNDS))
    costs = StageCosts((1,), np.percentile(of_one, 25, axis=0)[:, None])
    for rows in _sizes(max_batch):
        try:
            rounds = _rounds(BATCH_S, batches_ms(rows, 1), BATCH_ROUNDS)
            times = np.percentile(batches_ms(rows, rounds), 25, axis=0)
        except OutOfMemory:
            break
        costs = StageCosts((*costs.batch_sizes, rows), np.column_stack([costs.stages_ms, times]))
        if max_batch is None and costs.worthwhile_rows() < rows:
            break
    return costs


def measure_overhead_ms(
    backend: StageBackend, policy: ExitPolicy, example: State, combiner: Combiner = OWN_OUTPUTS
) -> float:
    """Measure what engine, combiner and policy take for one row at a stage, without the network."""
    idle = _IdleBackend(backend, example)
    times_ms = _batches_ms(idle, policy, combiner, (np.zeros((1, 1)),), 1, OVERHEAD_ROUNDS)
    return float(np.percentile(times_ms, 25))


class _IdleBackend:
    """A backend that does nothing: its outputs are those of another one for an example.

    Args:
        backend: The other one.
        example: One input row.
    """

    device = "none"

    def __init__(self, backend: StageBackend, example: State) -> None:
        self.num_exits = backend.num_exits
        self._outputs: list[HeadOutput] = []
        state = example
        for exit in range(self.num_exits):
            state = backend.run_stage(exit, state)
            self._outputs.append(backend.run_head(exit, state))

    def run_stage(self, stage: int, state: State) -> State:
        """Return the state as it is."""
        return state

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Return the output for the example."""
        return self._outputs[exit]

    def gather(self, parts: Sequence[Part]) -> State:
        """Return the first part."""
        return parts[0].state

    def synchronize(self) -> None:
        """Wait for nothing."""


def try_policy(
    backend: StageBackend, policy: ExitPolicy, example: State, combiner: Combiner = OWN_OUTPUTS
) -> None:
    """Run the example through network, combiner and policy once.

    Raises:
        ValueError: If that fails.
    """
    _batches_ms(backend, policy, combiner, example, 1, 1)


def _sizes(max_batch: int | None) -> list[int]:
    """Return the batch sizes to measure beyond 1."""
    limit = LARGEST_BATCH if max_batch is None else max_batch
    return sorted({*(2**power for power in range(1, 11) if 2**power < limit), limit} - {1})


def _rounds(seconds: float, first_ms: NDArray[np.float64], bounds: tuple[int, int]) -> int:
    """Return how many rounds fit into a time, within bounds."""
    fewest, most = bounds
    return int(min(max(seconds * 1e3 / max(first_ms.sum(), 1e-3), fewest), most))


def _batches_ms(
    backend: StageBackend,
    policy: ExitPolicy,
    combiner: Combiner,
    example: State,
    rows: int,
    rounds: int,
) -> NDArray[np.float64]:
    """Run batches of a size and return the milliseconds of every stage, (rounds, K)."""
    elapsed: list[list[float]] = []

    def keep(finished: list[InferenceRequest]) -> None:
        for request in finished[:1]:  # the others of the batch took the same time
            if isinstance(request.result, Prediction):
                elapsed.append([entry.elapsed_ms for entry in request.result.trace or ()])

    engine = Engine(
        backend,
        policy,
        policy.never_exit_parameter,
        workers=1,
        max_batch=rows,
        on_done=keep,
        combiner=combiner,
    )
    requests = [InferenceRequest(example, traced=True) for _ in range(rows * rounds)]
    engine.submit(requests)
    engine.start()
    try:
        engine.stop()
    except BaseException:  # Ctrl-C: the worker must not run while the interpreter ends
        engine.cancel(requests)
        engine.stop()
        raise
    if engine.max_batch < rows:
        raise OutOfMemory(f"{rows} rows")
    if len(elapsed) < rounds:
        raise ValueError("the network failed on the warm-up input; the log has the trace")
    return np.diff(np.array(elapsed), axis=1, prepend=0.0)
