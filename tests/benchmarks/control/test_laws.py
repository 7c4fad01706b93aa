import numpy as np
import pytest

from benchmarks.control.laws import LAWS, Controlled, KalmanEstimate
from benchmarks.control.metrics import measure_control
from benchmarks.control.policy_replay import PolicyReplay
from benchmarks.control.recorded_samples import RecordedSamples
from benchmarks.control.scenarios import Phase, Scenario
from benchmarks.control.simulated_server import ControlPolicy, Host, run
from scheduler.baselines import ConfidencePolicy
from scheduler.control.controller import ControllerConfig
from scheduler.control.estimates import CostEstimate
from scheduler.fitting.fit import fit_scheduler
from scheduler.thresholds import ThresholdTable
from tests.benchmarks.control.test_simulated_server import COSTS_MS, make_drift

STEADY = Scenario("steady", (Phase(6000, 200.0, 0.5),))


@pytest.fixture(scope="module")
def rows() -> RecordedSamples:
    return RecordedSamples.of_drift(make_drift())


@pytest.fixture(scope="module")
def fitted(rows: RecordedSamples) -> PolicyReplay:
    clean = rows.variants["clean"]
    log_probs = rows.log_probs[:, clean].astype(np.float64)
    scheduler = fit_scheduler("stopping", log_probs, rows.labels[clean], COSTS_MS)
    answers = scheduler.combiner.combine_all(rows.log_probs)
    return PolicyReplay.of(scheduler.policy, scheduler.frontier, answers)


def make(name: str, fitted: PolicyReplay, budget_ms: float) -> ControlPolicy:
    if name == "controller":
        return Controlled(fitted, budget_ms, ControllerConfig())
    return LAWS[name](fitted, budget_ms)


@pytest.mark.parametrize("name", ["controller", *LAWS])
def test_every_law_holds_the_budget_of_inputs_like_calibration(
    name: str, rows: RecordedSamples, fitted: PolicyReplay
) -> None:
    host = Host(COSTS_MS)
    law = make(name, fitted, host.budget_ms(0.5))
    figures = measure_control(run(STEADY, rows, host, law, {"window": 1000}))
    assert 0.93 * host.budget_ms(0.5) <= figures.mean_ms <= 1.04 * host.budget_ms(0.5)


@pytest.mark.parametrize("name", [name for name in LAWS if name not in ("frozen", "kalman")])
def test_the_controller_is_above_the_budget_least(
    name: str, rows: RecordedSamples, fitted: PolicyReplay
) -> None:
    host = Host(COSTS_MS)
    slow = Scenario("slow", (Phase(3000, 200.0, 0.5), Phase(4000, 200.0, 0.5, slowdown=1.4)))
    ours, other = (
        measure_control(
            run(slow, rows, host, make(each, fitted, host.budget_ms(0.5)), {"window": 1000})
        )
        for each in ("controller", name)
    )
    assert ours.above is not None and other.above is not None
    assert ours.above <= min(other.above, 0.01)


def test_left_alone_a_slow_host_takes_as_much_longer(
    rows: RecordedSamples, fitted: PolicyReplay
) -> None:
    host = Host(COSTS_MS)
    slow = Scenario("slow", (Phase(4000, 200.0, 0.5, slowdown=1.4),))
    figures = measure_control(run(slow, rows, host, make("frozen", fitted, 1.0), {"window": 1000}))
    assert figures.mean_ms == pytest.approx(1.4 * host.budget_ms(0.5), rel=0.05)


def test_static_exits_rise_from_all_at_once_to_all_at_the_end(fitted: PolicyReplay) -> None:
    exits = fitted.static_exits(points=7)
    assert len(exits) == 7
    assert (exits[0] == 0).all() and (exits[-1] == len(COSTS_MS) - 1).all()
    assert (np.diff(COSTS_MS[exits].mean(1)) >= 0).all()


def test_prices_are_no_policy_of_thresholds(fitted: PolicyReplay) -> None:
    closed = ConfidencePolicy(ThresholdTable.closed(len(COSTS_MS)), "maxprob")
    with pytest.raises(ValueError, match="maxprob has no price"):
        LAWS["dual"](fitted._replace(policy=closed), 2.0)


def test_the_kalman_filter_follows_its_first_samples_faster_than_a_running_mean() -> None:
    estimate, mean = KalmanEstimate(2.0), CostEstimate(2.0)
    for each in (estimate, mean):
        each.update(2.0, 4.0, 0.0, 0.0, 100.0)  # the host takes twice as long
    assert mean.slowdown < 1.1
    assert estimate.slowdown == pytest.approx(2.0, abs=0.05)
