from dataclasses import replace

import numpy as np
import pytest

from benchmarks.control.drift_sets import DriftSet, LengthCosts
from benchmarks.control.recorded_samples import RecordedSamples
from benchmarks.control.scenarios import Phase, Scenario
from benchmarks.control.simulated_server import Host, Reference, run
from scheduler.control.controller import Sample
from scheduler.frontier import Frontier

COSTS_MS = np.array([1.0, 2.0, 4.0])
STILL = Host(COSTS_MS, workers=1, jitter=0.0, decode_ms=0.0)


def make_drift(rows: int = 1500, seed: int = 0) -> DriftSet:
    """Three exits of rising accuracy, clean and corrupted."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, rows)
    ease = rng.normal(2.0, 1.5, rows)
    forms = []
    for strength in (0.0, 1.5):
        logits = rng.normal(0, 1, (3, rows, 4))
        for exit, gain in enumerate((0.7, 1.0, 1.4)):
            logits[exit, np.arange(rows), labels] += gain * (ease - strength)
        forms.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    return DriftSet(("clean", "noise-3"), np.stack(forms).astype(np.float16), labels)


class Always:
    """Everything leaves at one exit; what is told is kept."""

    parameter = 7.0

    def __init__(self, exit: int) -> None:
        self.exit = exit
        self.budgets_ms: list[float] = []
        self.samples: list[tuple[Sample, float]] = []
        self.asked: list[int] = []
        self.waiting: list[float] = []

    def set_budget(self, budget_ms: float) -> None:
        self.budgets_ms.append(budget_ms)

    def leaves(self, exit: int, row: int, waiting: float) -> bool:
        assert exit < 2, "nobody asks at the last exit"
        self.asked.append(row)
        self.waiting.append(waiting)
        return exit >= self.exit

    def observe(self, sample: Sample, now_s: float) -> None:
        self.samples.append((sample, now_s))


@pytest.fixture
def rows() -> RecordedSamples:
    return RecordedSamples.of_drift(make_drift())


def one(phase: Phase, measure: str = "compute") -> Scenario:
    return Scenario("one", (phase,), measure)  # type: ignore[arg-type]


@pytest.mark.parametrize("exit", [0, 1, 2])
def test_samples_take_the_costs_until_their_exit(exit: int, rows: RecordedSamples) -> None:
    law = Always(exit)
    log = run(one(Phase(300, 50.0)), rows, STILL, law, {"window": 100})
    assert log.latency_ms == pytest.approx(np.full(len(log), COSTS_MS[exit]))
    assert set(log.exit.tolist()) == {exit}
    assert len(law.samples) == len(log) > 200
    assert log.correct.mean() == pytest.approx(
        rows.correct[rows.variants["clean"], exit].mean(), abs=0.1
    )
    assert law.budgets_ms == [STILL.budget_ms(0.55)] == [pytest.approx(2.65)]


def test_a_slow_phase_takes_longer_and_says_so(rows: RecordedSamples) -> None:
    scenario = Scenario("slow", (Phase(100, 20.0), Phase(100, 20.0, slowdown=1.6)))
    log = run(scenario, rows, STILL, Always(2), {"window": 100})
    slow = log.phase == 1
    assert log.latency_ms[slow] == pytest.approx(np.full(slow.sum(), 6.4))
    assert log.floor_ms[slow] == pytest.approx(np.full(slow.sum(), 1.6))
    assert log.ceiling_ms[~slow] == pytest.approx(np.full((~slow).sum(), 4.0))


def test_stages_take_longer_while_neighbours_are_there(rows: RecordedSamples) -> None:
    shared = Phase(2000, 50.0, neighbours=True)
    log = run(one(shared), rows, STILL, Always(2), {"window": 100})
    visits = list(shared.visits(0))
    there = np.array([any(come <= at < go for come, go in visits) for at in log.admitted_s])
    assert 0.3 < there.mean() < 0.7
    assert log.latency_ms[~there] == pytest.approx(np.full((~there).sum(), 4.0))
    assert log.latency_ms[there].mean() == pytest.approx(6.4, rel=0.1)


def test_pulses_leave_pauses(rows: RecordedSamples) -> None:
    log = run(one(Phase(800, 100.0, pulse_s=1.0)), rows, STILL, Always(0), {"window": 100})
    assert (log.admitted_s % 2.0).max() <= 1.0
    assert len(log) == pytest.approx(800, abs=100)


def test_a_law_is_told_how_many_wait(rows: RecordedSamples) -> None:
    crowded, law = Phase(300, 500.0), Always(2)
    run(one(crowded), rows, STILL, law, {"window": 100})
    assert max(law.waiting) > 10
    alone = Always(2)
    run(one(replace(crowded, rate_per_s=5.0)), rows, STILL, alone, {"window": 100})
    assert np.mean(alone.waiting) < 0.1


def test_one_worker_does_one_sample_at_a_time_and_waiting_counts_end_to_end(
    rows: RecordedSamples,
) -> None:
    busy = Phase(2000, 225.0)  # nine tenths of what one worker can do
    law = Always(2)
    log = run(one(busy, "end_to_end"), rows, STILL, law, {"window": 100})
    # M/D/1: w = rho s / (2 (1 - rho)) = 18 ms in the long run
    assert 22 * 0.5 <= log.latency_ms.mean() <= 22 * 2
    assert (np.diff(log.done_s) > 0.0039).sum() > 0.7 * len(log)
    sample, _ = law.samples[-1]
    assert sample.overhead_ms == pytest.approx(sample.latency_ms - 4.0)
    assert sample.waiting_ms == pytest.approx(sample.overhead_ms)
    calm = run(one(busy), rows, STILL, Always(2), {"window": 100})
    assert calm.latency_ms == pytest.approx(np.full(len(calm), 4.0))


def test_only_what_a_phase_asks_for_comes(rows: RecordedSamples) -> None:
    law = Always(0)
    run(one(Phase(200, 50.0, inputs="noise-3", classes=(2,))), rows, STILL, law, {"window": 100})
    asked = np.array(law.asked)
    assert set(rows.labels[asked].tolist()) == {2}
    assert asked.min() >= rows.variants["noise-3"].start


@pytest.mark.parametrize(
    ("phase", "sentence"),
    [
        (Phase(10, 1.0, inputs="blur-1"), "no predictions are recorded for inputs 'blur-1'"),
        (Phase(10, 1.0, classes=(9,)), "no sample of the classes"),
    ],
)
def test_what_is_not_recorded_is_refused(
    phase: Phase, sentence: str, rows: RecordedSamples
) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(one(phase), rows, STILL, Always(0), {"window": 100})


def test_longer_texts_take_longer(rows: RecordedSamples) -> None:
    drift = make_drift()
    tokens = np.repeat([[8], [16]], len(drift.labels), axis=1)
    costs = LengthCosts(np.array([8, 16]), np.array([[1.0, 2.0], [2.0, 4.0], [4.0, 8.0]]))
    texts = RecordedSamples.of_drift(drift._replace(tokens=tokens, length_costs=costs))
    log = run(one(Phase(50, 20.0, inputs="noise-3")), texts, STILL, Always(1), {"window": 100})
    assert log.latency_ms == pytest.approx(np.full(len(log), 4.0))


def test_the_same_seed_gives_the_same_log(rows: RecordedSamples) -> None:
    first, again, other = (
        run(one(Phase(300, 200.0)), rows, Host(COSTS_MS), Always(1), {"window": 100}, seed)
        for seed in (1, 1, 2)
    )
    assert first.latency_ms.tolist() == again.latency_ms.tolist()
    assert first.latency_ms.tolist() != other.latency_ms.tolist()


def test_fixed_parameters_are_judged_on_the_very_samples(rows: RecordedSamples) -> None:
    static = np.stack([np.full(len(rows.labels), exit, np.int8) for exit in range(3)])
    judge = Reference(static, frontier_of([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [0.5, 0.6, 0.7]))
    log = run(one(Phase(400, 50.0)), rows, STILL, Always(1), {"window": 100}, 0, judge)
    ((costs, accuracy),) = log.about["static_curves"]
    assert costs == [1.0, 2.0, 4.0]
    assert accuracy[1] == pytest.approx(log.correct.mean(), abs=1e-4)
    assert set(log.ceiling_ms.round(6)) == {2.65}  # the budget, which it could use


def test_nobody_need_spend_what_the_policy_has_no_use_for(rows: RecordedSamples) -> None:
    static = np.zeros((1, len(rows.labels)), np.int8)
    judge = Reference(static, frontier_of([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [0.5, 0.6, 0.6]))
    log = run(one(Phase(400, 50.0)), rows, STILL, Always(1), {"window": 100}, 0, judge)
    assert set(log.ceiling_ms.round(6)) == {2.0}


def frontier_of(rates: list[list[float]], accuracy: list[float]) -> Frontier:
    return Frontier(np.arange(len(rates), dtype=float), np.array(rates, float),
                    np.array(accuracy), COSTS_MS)  # fmt: skip
