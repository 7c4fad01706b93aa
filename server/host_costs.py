"""What exits cost on this host: it is never the machine that built the bundle."""

import logging

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from models.backend import StageBackend, State
from scheduler.frontier import Frontier
from scheduler.policy import ExitPolicy
from server.engine import Engine
from server.metrics import Metrics, ModelMetrics
from server.row import Answer, Completion, Row

log = logging.getLogger(__name__)

WARM_UP_ROUNDS = 20
COST_ROUNDS = 100
SAME_SPEED = 0.25  # hosts whose costs differ by no more than this share are taken for the same


def measure_costs(backend: StageBackend, policy: ExitPolicy, example: State) -> NDArray[np.float64]:
    """Warm up and measure the latency until each exit, (K,), through the engine.

    The lower quartile of each stage, summed: at start other processes often share the cores, and
    what they take is the controller's measured/predicted ratio to know, not the stages' costs.
    """
    elapsed: list[list[float]] = []

    def keep(completions: list[Completion]) -> None:
        for _, outcome in completions:
            if isinstance(outcome, Answer):
                elapsed.append([entry.elapsed_ms for entry in outcome.trace or ()])

    metrics = ModelMetrics(Metrics(CollectorRegistry(), ""), "warm-up", backend.num_exits)
    engine = Engine(
        backend, policy, policy.run_on, workers=1, max_batch=1, metrics=metrics, on_batch=keep
    )
    engine.submit([Row(example, traced=True) for _ in range(WARM_UP_ROUNDS + COST_ROUNDS)])
    engine.start()
    engine.stop()
    if len(elapsed) < WARM_UP_ROUNDS + COST_ROUNDS:
        raise ValueError("the network failed on the warm-up input; the log has the trace")
    stages_ms = np.diff(np.array(elapsed[WARM_UP_ROUNDS:]), axis=1, prepend=0.0)
    costs: NDArray[np.float64] = np.percentile(stages_ms, 25, axis=0).cumsum()
    return costs


def default_budget_ms(default_ms: float, built_on: Frontier, here: Frontier) -> float:
    """The bundle's default budget on this host.

    It is in milliseconds of the machine that built the bundle. Where this host is much faster or
    slower they would mean another trade, so the same point of the frontier is kept instead.
    """
    ratio = float(here.costs_ms[-1] / built_on.costs_ms[-1])
    if abs(ratio - 1) <= SAME_SPEED:
        return default_ms
    point = here.at_parameter(built_on.at_cost(default_ms).parameter)
    moved_ms = round(point.expected_cost_ms, 3)
    log.info(
        "this host takes %.2fx the time: default budget %g ms -> %g ms", ratio, default_ms, moved_ms
    )
    return moved_ms
