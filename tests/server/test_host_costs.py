import logging
from collections import Counter

import numpy as np
import pytest

from models.backend import HeadOutput, State
from scheduler.baselines import ConfidencePolicy
from scheduler.frontier import Frontier
from scheduler.policy import ExitPolicy
from scheduler.stopping import NUM_FEATURES, StoppingPolicy
from scheduler.thresholds import ThresholdTable
from server.host_costs import default_budget_ms, measure_costs


class FakeBackend:
    """Two exits that count their calls; fails where told to."""

    num_exits = 2

    def __init__(self, *, fails: bool = False) -> None:
        self.calls: Counter[str] = Counter()
        self.fails = fails

    def run_stage(self, stage: int, state: State) -> State:
        self.calls[f"stage {stage}"] += 1
        if self.fails:
            raise RuntimeError("no device")
        return state

    def run_head(self, exit: int, state: State) -> HeadOutput:
        self.calls[f"head {exit}"] += 1
        log_probs = np.log(np.full((len(state[0]), 2), 0.5, np.float32))
        return HeadOutput(log_probs, log_probs)


def thresholds() -> ConfidencePolicy:
    """Everyone leaves at once at parameter 1, at the end at 2."""
    never = np.inf
    table = ThresholdTable(np.array([1.0, 2.0]), np.array([[-never, -never], [never, -never]]))
    return ConfidencePolicy(table, "maxprob")


def stopping() -> StoppingPolicy:
    """Sure of every answer, and sure that going on mends none."""
    sure, offsets = np.zeros((NUM_FEATURES, 3)), np.zeros((2, 3))
    sure[0] = 10.0
    return StoppingPolicy(
        np.array([0.0, 1.0]), np.array([1.0]), (sure, sure[:, :1]), (offsets, offsets[:, :1])
    )


def frontier(costs: list[float], *, falling: bool = False) -> Frontier:
    """A parameter that rises with the cost, as a budget does, or falls, as a price does."""
    shares = np.linspace(0, 1, 11)
    return Frontier(
        parameters=1 - shares if falling else 1 + shares,
        exit_rates=np.stack([1 - shares, shares], 1),
        expected_accuracy=0.8 + 0.1 * shares,
        costs_ms=np.array(costs),
    )


@pytest.mark.parametrize("policy", [thresholds(), stopping()], ids=["thresholds", "stopping"])
def test_every_stage_and_head_is_warmed_and_costs_rise(policy: ExitPolicy) -> None:
    backend = FakeBackend()
    costs = measure_costs(backend, policy, np.zeros((1, 3), np.float32))
    assert 0 < costs[0] < costs[1]
    assert set(backend.calls) == {"stage 0", "head 0", "stage 1", "head 1"}
    assert len(set(backend.calls.values())) == 1


def test_a_network_that_fails_stops_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL), pytest.raises(ValueError, match="warm-up input"):
        measure_costs(FakeBackend(fails=True), thresholds(), np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.2])
def test_the_default_budget_stays_as_written_on_a_like_host(speed: float) -> None:
    here = frontier([1.0 * speed, 2.0 * speed])
    assert default_budget_ms(1.55, frontier([1.0, 2.0]), here) == 1.55


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("speed", [0.4, 3.0])
def test_the_default_budget_keeps_its_point_of_the_frontier_on_another(
    speed: float, falling: bool
) -> None:
    built_on = frontier([1.0, 2.0], falling=falling)
    here = frontier([1.0 * speed, 2.0 * speed], falling=falling)
    assert default_budget_ms(1.55, built_on, here) == pytest.approx(1.5 * speed)
