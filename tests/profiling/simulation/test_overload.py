"""A server under overload, beside the engine in virtual time and beside simple counts."""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.virtual_time import VirtualTime
from models.runtime.replay_backend import ReplayBackend
from models.stage_costs import StageCosts
from profiling.calibration import load_recorded
from profiling.simulation.arrivals import poisson
from profiling.simulation.exit_table import ExitTable, Leaves, never_leave
from profiling.simulation.overload import (
    REFUSED,
    Admission,
    BudgetedExits,
    FrozenExits,
    Offered,
    Served,
    serve,
)
from profiling.simulation.simulator import Device
from scheduler.baselines import ConfidencePolicy
from scheduler.control.controller import BudgetController, ControllerConfig
from scheduler.thresholds import ThresholdTable
from server.engine.engine import Engine
from server.engine.request import InferenceRequest, Prediction
from tests.bundles import scheduler_of, variant_of

CORE = StageCosts.of_exits([1.0, 1.75, 2.5])
BATCHES = StageCosts((1, 4), np.array([[1.0, 2.5], [0.5, 1.2], [0.5, 1.2]]))
SHARED = 200  # recorded rows


def offered(rate_per_s: float, count: int, rows: int = SHARED) -> Offered:
    drawn = np.random.default_rng(1).integers(0, rows, count)
    return Offered(poisson(rate_per_s, count) * 1e3, drawn)


def thirds() -> Leaves:
    """A third of the rows leaves at each of three exits."""
    rows = np.arange(SHARED) % 3
    return [(rows == 0).astype(np.uint8).tobytes(), (rows <= 1).astype(np.uint8).tobytes()]


@given(
    st.floats(100, 3000),
    st.integers(1, 3),
    st.sampled_from([CORE, BATCHES]),
    st.integers(1, 6),
    st.one_of(st.none(), st.floats(2, 50)),
    st.integers(1, 40),
)
def test_every_request_is_answered_once_or_refused(
    rate: float,
    workers: int,
    costs: StageCosts,
    max_batch: int,
    deadline_ms: float | None,
    bound: int,
) -> None:
    requests = offered(rate, 150)
    device = Device(costs, workers, max_batch, jitter=(0.8, 1.3, 1.0))
    served = serve(requests, device, Admission(bound, deadline_ms), FrozenExits(thirds()))
    answered = served.exits != REFUSED
    assert np.isfinite(served.latency_ms[answered]).all()
    assert np.isinf(served.latency_ms[~answered]).all()
    alone_ms = 0.8 * costs.costs_ms[served.exits[answered]]
    assert (served.latency_ms[answered] >= alone_ms - 1e-9).all()
    if deadline_ms is None:
        assert (served.exits[answered] == (requests.rows % 3)[answered]).all()
        assert answered.any()
    else:
        assert (served.exits[answered] <= (requests.rows % 3)[answered]).all()
        late = served.latency_ms > deadline_ms  # only those that had reached exit 0 in time
        assert (served.exits[answered & late] > 0).all()


def test_more_than_the_bound_is_refused_at_once() -> None:
    requests = Offered(np.zeros(10), np.zeros(10, np.intp))
    served = serve(requests, Device(CORE), Admission(4), FrozenExits(never_leave(3, 1)))
    assert (served.exits != REFUSED).tolist() == [True] * 4 + [False] * 6
    assert served.attainment(1e9) == 0.4 and served.attainment(1.0) == 0.0
    assert served.accuracy(requests.rows, np.array([[0.0, 0.0, 1.0]])) == 0.4


def test_what_exit_0_is_too_late_for_is_not_started() -> None:
    requests = Offered(np.zeros(10), np.zeros(10, np.intp))
    served = serve(requests, Device(CORE), Admission(99, 3.5), FrozenExits(never_leave(3, 1)))
    assert (served.exits != REFUSED).sum() == 3
    assert served.attainment(3.5) == 0.3


@pytest.mark.parametrize("deadline_ms", [None, 10.0])
@pytest.mark.parametrize("rate", [300.0, 700.0, 1200.0])
def test_the_engine_itself_makes_the_same_of_the_same_requests(
    rate: float, deadline_ms: float | None
) -> None:
    requests, leaves = offered(rate, 1500), thirds()
    served = serve(requests, Device(CORE, 1, 1), Admission(10**9, deadline_ms), FrozenExits(leaves))
    seen = run_engine(requests, deadline_ms)
    # All are equal until rounding breaks a tie of two times differently.
    for ms in (3.0, 10.0, 30.0):
        assert served.attainment(ms) == pytest.approx(seen.attainment(ms), abs=0.03)
    assert (served.exits == seen.exits).mean() > 0.97


def log_probs_of(leaves: Leaves) -> np.ndarray:
    """Predictions whose max probability is 0.99 where a row leaves, elsewhere 0.6, (K, N, 2)."""
    fires = [np.frombuffer(each, np.uint8) for each in leaves]
    confidence = np.where([*fires, np.ones(SHARED)], 0.99, 0.6)
    return np.log(np.stack([confidence, 1 - confidence], 2))


def run_engine(requests: Offered, deadline_ms: float | None) -> Served:
    """The same requests through the engine, in virtual time."""
    time, count = VirtualTime(), len(requests.rows)
    seen = Served(np.full(count, REFUSED, np.int8), np.full(count, np.inf))

    def keep(done: list[InferenceRequest]) -> None:
        for request in done:
            if isinstance(request.result, Prediction):
                place = int(request.request_id)
                seen.exits[place] = request.result.exit
                seen.latency_ms[place] = 1e3 * time.clock() - requests.arrivals_ms[place]

    engine = Engine(
        ReplayBackend(log_probs_of(thirds()), CORE, time.sleep, clock=lambda: 0.0),
        ConfidencePolicy(
            ThresholdTable(np.array([1.0]), np.array([[0.9, 0.9, -np.inf]])), "maxprob"
        ),
        1.0,
        workers=0,
        max_batch=1,
        on_done=keep,
        costs=CORE,
        clock=time.clock,
    )
    engine.stop()  # from now on `run` returns when no request waits
    for place, (ms, row) in enumerate(zip(requests.arrivals_ms, requests.rows, strict=True)):
        deadline_s = None if deadline_ms is None else (ms + deadline_ms) / 1e3
        request = InferenceRequest((np.array([row]),), deadline_s=deadline_s)
        request.request_id = str(place)
        time.at(ms / 1e3, partial(engine.submit, [request]))
    while time.skip():
        engine.run()
    return seen


@pytest.fixture(scope="module")
def table(shipped_bundle: Path) -> ExitTable:
    """The shipped image policy on its test rows."""
    scheduler = scheduler_of(shipped_bundle)
    test = load_recorded(variant_of(shipped_bundle).predictions).test
    frontier = scheduler.frontier.with_costs(CORE.costs_ms).spread(40)
    return ExitTable.of(scheduler.policy, frontier, test.log_probs[:, :SHARED])


def test_a_table_holds_the_decisions_of_the_policy(table: ExitTable) -> None:
    assert len(table.leaves) == len(table.frontier) and len(table.leaves[0]) == 2
    shares = [sum(leaves[0]) / SHARED for leaves in table.leaves]
    assert shares[0] == 1.0 and shares[-1] == 0.0
    assert all(a >= b for a, b in itertools.pairwise(shares)) and len(set(shares)) > 10
    assert table.at(float(table.frontier.parameters[7])) == table.leaves[7]
    assert [sum(each) for each in never_leave(3, SHARED)] == [0, 0]


def mean_exit(served: Served) -> float:
    return float(served.exits[served.exits != REFUSED].mean())


def test_a_budget_makes_exits_earlier_as_the_queue_grows(table: ExitTable) -> None:
    exits = []
    for rate in (200.0, 500.0, 900.0):
        controller = BudgetController(table.frontier, 5.0, ControllerConfig())
        control = BudgetedExits(table, controller, workers=1)
        served = serve(offered(rate, 3000), Device(CORE, 1, 1), Admission(512, 40.0), control)
        exits.append(mean_exit(served))
    assert exits[0] > 1.5 > exits[1] > exits[2]


def test_exits_under_a_budget_follow_the_queue_at_once(table: ExitTable) -> None:
    controller = BudgetController(table.frontier, 2.5, ControllerConfig())
    control = BudgetedExits(table, controller, workers=2)
    assert control.leaves(0) == control.leaves(1) == table.at(controller.parameter)
    assert control.leaves(2) == table.at(controller.queued_parameters[0])
    assert control.leaves(900) == table.at(controller.queued_parameters[-1])
    assert controller.queued_parameters[0] != controller.parameter
