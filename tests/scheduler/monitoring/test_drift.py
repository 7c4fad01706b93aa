"""Drift of scores: none on the calibration distribution whatever the parameter, told elsewhere."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.fitted import Scheduler
from scheduler.fitting.fit import fit_scheduler
from scheduler.frontier import Frontier
from scheduler.monitoring import drift
from scheduler.monitoring.drift import ScoreDrift
from scheduler.policy import ExitScores
from scheduler.thresholds import ThresholdPolicy, ThresholdTable
from tests.policies import ALL_BUT_EENET_QUICK

COSTS = np.array([1.0, 1.4, 2.0])
Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScorePolicy(ThresholdPolicy):
    """Scores a row by the first number it is shown."""

    kind: ClassVar[str] = "toy"

    def start(self, rows: int) -> NDArray[np.float64]:
        return np.empty((rows, 0))

    def score(
        self, exit: int, log_probs: NDArray[np.floating], history: NDArray[np.float64]
    ) -> ExitScores:
        return ExitScores(log_probs[:, 0].astype(np.float64), history, history)


def predictions(rows: int, seed: int, strength: float = 1.0) -> tuple[Array, NDArray[np.int64]]:
    """Log-probabilities (3, N, 5) and labels: later exits are surer; less `strength`, harder."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, rows)
    easiness = strength * rng.uniform(0, 1, (rows, 1))
    logits = rng.normal(size=(3, rows, 5))
    for exit, sure in enumerate((3, 5, 8)):
        logits[exit] += sure * easiness * np.eye(5)[labels]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), labels


@lru_cache
def fitted(kind: str) -> Scheduler:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("scheduler.frontier.GRID_STEP", 0.1)
        patched.setattr("scheduler.fitting.stopping.GRID_STEP", 0.02)
        patched.setattr("scheduler.thresholds.REPAIR_STEPS", 15)
        patched.setattr("scheduler.fitting.eenet.SCORE_STEPS", 10)
        patched.setattr("scheduler.fitting.eenet.ASSIGNMENT_STEPS", 10)
        patched.setattr("scheduler.fitting.eenet.NUM_BUDGETS", 4)
        patched.setattr("scheduler.fitting.fit.FOLDS", 2)
        return fit_scheduler(kind, *predictions(2000, seed=0), COSTS)


def drift_of(scheduler: Scheduler, seed: int = 1) -> ScoreDrift:
    policy, frontier, combiner = scheduler
    calibration = combiner.combine_all(predictions(2000, seed=0)[0])
    return ScoreDrift(policy, frontier, calibration, np.random.default_rng(seed))


def serve(
    scheduler: Scheduler, watched: ScoreDrift, log_probs: Array, parameters: list[float]
) -> None:
    """Send rows through as the engine does: shown are the scores of rows that have not left."""
    log_probs = scheduler.combiner.combine_all(log_probs)
    parts = np.array_split(np.arange(log_probs.shape[1]), len(parameters))
    for rows, parameter in zip(parts, parameters, strict=True):
        staying, policy = rows, scheduler.policy
        history = policy.start(len(rows))
        for exit in range(policy.num_exits):
            step = policy.step(exit, log_probs[exit, staying], history, np.array([parameter]))
            watched.add(exit, step.scores, parameter)
            staying, history = staying[~step.leave], step.history[~step.leave]


def moving(scheduler: Scheduler, cheapest: float, dearest: float, count: int = 40) -> list[float]:
    """Parameters that wander between two shares of the way along the frontier."""
    costs = scheduler.frontier.expected_costs_ms
    shares = np.random.default_rng(2).uniform(cheapest, dearest, count)
    wanted = costs[0] + shares * (costs[-1] - costs[0])
    return [scheduler.frontier.at_cost(cost).parameter for cost in wanted.tolist()]


@pytest.mark.parametrize("kind", ALL_BUT_EENET_QUICK)
def test_without_drift_the_index_is_small_while_the_parameter_moves(kind: str) -> None:
    scheduler = fitted(kind)
    watched = drift_of(scheduler)
    serve(scheduler, watched, predictions(8000, seed=3)[0], moving(scheduler, 0.3, 0.9))
    indices = watched.psi()
    assert len(indices) == 2
    assert all(index is not None and index < 0.06 for index in indices), indices


@pytest.mark.parametrize("kind", ALL_BUT_EENET_QUICK)
def test_harder_inputs_show_as_drift(kind: str) -> None:
    scheduler = fitted(kind)
    watched = drift_of(scheduler)
    serve(scheduler, watched, predictions(8000, 3, strength=0.3)[0], moving(scheduler, 0.3, 0.9))
    first = watched.psi()[0]
    assert first is not None and first > 0.25


def test_who_reaches_an_exit_is_compared_with_the_like_and_not_with_all() -> None:
    # Those that reach exit 1 at a tight budget are the hard ones: against all they would drift.
    scheduler, log_probs = fitted("maxprob"), predictions(8000, seed=3)[0]
    answers = scheduler.combiner.combine_all(log_probs)
    tight = moving(scheduler, 0.2, 0.2, count=1)
    watched = drift_of(scheduler)
    serve(scheduler, watched, log_probs, tight)
    against_all = drift_of(scheduler)
    step = scheduler.policy.step(0, answers[0], scheduler.policy.start(8000), np.array(tight))
    assert 0.2 < step.leave.mean() < 0.8
    later = scheduler.policy.score(1, answers[1, ~step.leave], step.history[~step.leave])
    against_all.add(1, later.scores, scheduler.policy.never_exit_parameter)
    (_, like), (_, unlike) = watched.psi(), against_all.psi()
    assert like is not None and like < 0.06
    assert unlike is not None and unlike > 0.1


def one_exit(scores: Array) -> ScoreDrift:
    """Of a policy whose scores are what exit 0 says, and never leaves."""
    policy = ScorePolicy(ThresholdTable.closed(2))
    frontier = Frontier(np.zeros(1), np.array([[0.0, 1.0]]), np.ones(1), np.array([1.0, 2.0]))
    log_probs = np.stack([np.stack([scores, scores], 1)] * 2)
    return ScoreDrift(policy, frontier, log_probs, np.random.default_rng(0))


@pytest.mark.parametrize("values", [1, 2, 3, 7])
def test_ties_are_spread(values: int) -> None:
    rng = np.random.default_rng(0)
    watched = one_exit(rng.integers(0, values, 1000) / 10)
    watched.add(0, rng.integers(0, values, 2000) / 10, 0.0)
    (index,) = watched.psi()
    assert index is not None and index < 0.03


def test_ties_hold_where_scores_were_added_up_in_another_order() -> None:
    watched = one_exit(np.full(1000, 0.1 + 0.2))
    watched.add(0, np.full(2000, 0.3), 0.0)
    (index,) = watched.psi()
    assert index is not None and index < 0.03


def test_only_the_last_2000_scores_count() -> None:
    rng = np.random.default_rng(0)
    watched = one_exit(rng.normal(size=2000))
    watched.add(0, rng.normal(3, 1, 2000), 0.0)
    (shifted,) = watched.psi()
    assert shifted is not None and shifted > 1
    watched.add(0, rng.normal(size=2000), 0.0)
    (index,) = watched.psi()
    assert index is not None and index < 0.03


def test_too_few_scores_or_calibration_rows_say_nothing() -> None:
    rng = np.random.default_rng(0)
    watched = one_exit(rng.normal(size=2000))
    watched.add(0, rng.normal(size=199), 0.0)
    assert watched.psi() == [None]
    watched.add(0, rng.normal(size=1), 0.0)
    assert watched.psi() != [None]
    few = one_exit(rng.normal(size=drift.MIN_REFERENCE - 1))
    few.add(0, rng.normal(size=1000), 0.0)
    assert few.psi() == [None]


def test_memory_is_bounded_by_points_and_rows() -> None:
    scheduler = fitted("stopping")
    watched = drift_of(scheduler)
    prices = np.random.default_rng(0).uniform(-3, 3, 3000)
    for price in prices.tolist():
        watched.add(0, np.array([0.5]), price)
    assert len(watched._references) <= drift.MAX_POINTS
    many = np.zeros((2, drift.MAX_ROWS + 500, 2))
    policy = ScorePolicy(ThresholdTable.closed(2))
    frontier = Frontier(np.zeros(1), np.array([[0.0, 1.0]]), np.ones(1), np.array([1.0, 2.0]))
    large = ScoreDrift(policy, frontier, many, np.random.default_rng(0))
    assert len(large._replayed[0].scores) == drift.MAX_ROWS


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=200, max_size=400))
def test_whatever_the_scores_the_index_is_a_number_of_a_drift(scores: list[float]) -> None:
    watched = one_exit(np.random.default_rng(0).normal(size=300))
    watched.add(0, np.array(scores), 0.0)
    (index,) = watched.psi()
    assert index is not None and 0 <= index < 10
