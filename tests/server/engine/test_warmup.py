import logging
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

import server.engine.warmup
from models.backend import HeadOutput, OutOfMemory, State, gather_arrays
from scheduler.baselines import ConfidencePolicy
from scheduler.policy import ExitPolicy
from scheduler.stopping import NUM_FEATURES, StoppingPolicy
from scheduler.thresholds import ThresholdTable
from server.engine.warmup import measure_costs, measure_overhead_ms

EXAMPLE = (np.zeros((1, 3), np.float32),)


@pytest.fixture(scope="module", autouse=True)
def quick_warm_ups() -> None:
    """Here as many rounds are measured as by a server."""


class FakeBackend:
    """Two exits that count their calls and take their time; fails where told to.

    Args:
        fails: Always.
        takes_ms: One batch through one stage, by its rows.
        memory: Most rows of a batch that fit.
    """

    num_exits = 2
    device = "fake"
    gather = staticmethod(gather_arrays)
    synchronize = staticmethod(lambda: None)

    def __init__(
        self,
        *,
        fails: bool = False,
        takes_ms: Callable[[int], float] = lambda rows: 0.0,
        memory: int = 1000,
    ) -> None:
        self.calls: Counter[str] = Counter()
        self.sizes: Counter[int] = Counter()
        self.fails = fails
        self.takes_ms = takes_ms
        self.memory = memory

    def run_stage(self, stage: int, state: State) -> State:
        rows = len(state[0])
        self.calls[f"stage {stage}"] += 1
        self.sizes[rows] += 1
        if self.fails:
            raise RuntimeError("no device")
        if rows > self.memory:
            raise OutOfMemory(f"{rows} rows")
        time.sleep(self.takes_ms(rows) / 1e3)
        return state

    def run_head(self, exit: int, state: State) -> HeadOutput:
        self.calls[f"head {exit}"] += 1
        log_probs = np.log(np.full((len(state[0]), 2), 0.5, np.float32))
        return HeadOutput(log_probs, log_probs)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few rounds as may be."""
    for name in ("WARM_UP_S", "MEASURE_S", "BATCH_S"):
        monkeypatch.setattr(server.engine.warmup, name, 0.0)


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


@pytest.mark.parametrize("policy", [thresholds(), stopping()], ids=["thresholds", "stopping"])
def test_every_stage_and_head_is_warmed_and_measured(policy: ExitPolicy) -> None:
    backend = FakeBackend()
    costs = measure_costs(backend, policy, EXAMPLE)
    assert costs.batch_sizes == (1,) and costs.stages_ms.shape == (2, 1)
    assert 0 < costs.costs_ms[0] < costs.costs_ms[1]
    assert set(backend.calls) == {"stage 0", "head 0", "stage 1", "head 1"}
    assert len(set(backend.calls.values())) == 1


def test_costs_are_those_of_stages_by_the_size_of_their_batch() -> None:
    takes = {1: 1.0, 2: 5.0, 4: 10.0}
    costs = measure_costs(FakeBackend(takes_ms=lambda rows: takes[rows]), thresholds(), EXAMPLE, 4)
    assert costs.batch_sizes == (1, 2, 4)
    for stage_ms in costs.stages_ms:
        for measured_ms, ms in zip(stage_ms, takes.values(), strict=True):
            assert ms <= measured_ms < ms + 4


def free_until(rows: int) -> Callable[[int], float]:
    """A batch of up to so many rows takes as long as one row; then all rows take the same."""
    return lambda batch: 4.0 * max(batch / rows, 1.0)


@pytest.mark.parametrize(("free", "measured"), [(1, (1, 2)), (4, (1, 2, 4, 8))])
def test_sizes_double_until_one_is_not_worth_its_wait(free: int, measured: tuple[int, ...]) -> None:
    backend = FakeBackend(takes_ms=free_until(free))
    costs = measure_costs(backend, thresholds(), EXAMPLE, None)
    assert costs.batch_sizes == measured and set(backend.sizes) == set(measured)
    assert costs.worthwhile_rows() == free


def test_there_is_a_largest_size_even_if_each_is_worth_its_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server.engine.warmup, "LARGEST_BATCH", 8)
    costs = measure_costs(FakeBackend(takes_ms=free_until(64)), thresholds(), EXAMPLE, None)
    assert costs.batch_sizes == (1, 2, 4, 8) and costs.worthwhile_rows() == 8


@pytest.mark.parametrize(
    ("max_batch", "measured"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))]
)
def test_a_given_largest_batch_is_measured_up_to_whatever_it_is_worth(
    max_batch: int, measured: tuple[int, ...]
) -> None:
    backend = FakeBackend(takes_ms=lambda rows: 0.1 * rows)
    costs = measure_costs(backend, thresholds(), EXAMPLE, max_batch)
    assert costs.batch_sizes == measured and set(backend.sizes) == set(measured)


def test_sizes_that_memory_does_not_hold_are_no_part_of_the_costs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = FakeBackend(takes_ms=free_until(64), memory=4)
    with caplog.at_level(logging.ERROR):
        costs = measure_costs(backend, thresholds(), EXAMPLE, None)
    assert costs.batch_sizes == (1, 2, 4) and costs.worthwhile_rows() == 4
    assert max(backend.sizes) == 8, "the first size that does not fit is the last"


def test_a_network_that_fails_stops_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL), pytest.raises(ValueError, match="warm-up input"):
        measure_costs(FakeBackend(fails=True), thresholds(), EXAMPLE)


def test_the_engines_own_time_is_measured_without_the_networks() -> None:
    backend = FakeBackend(takes_ms=lambda rows: 50.0)
    for policy in (thresholds(), stopping()):
        assert 0 < measure_overhead_ms(backend, policy, EXAMPLE) < 25
