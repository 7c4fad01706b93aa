"""The agreement of early exits with the last, replayed at every parameter, and its floor."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.fitting.fit import fit_scheduler
from scheduler.frontier import Frontier
from scheduler.monitoring.agreement import AgreementCount, AgreementCurve, AgreementFloor
from scheduler.policy import ExitScores, exits_taken, replay
from scheduler.thresholds import ThresholdPolicy, ThresholdTable
from tests.policies import ALL_BUT_EENET_QUICK

Array = NDArray[np.float64]
POINTS = 41


@dataclass(frozen=True)
class ByTheFirst(ThresholdPolicy):
    """Scores a row by the chance that it gives class 0, and never leaves at the middle exit."""

    kind: ClassVar[str] = "toy"

    def start(self, rows: int) -> Array:
        return np.empty((rows, 0))

    def score(self, exit: int, log_probs: NDArray[np.floating], history: Array) -> ExitScores:
        chances = np.exp(log_probs[..., 0], dtype=np.float64)
        return ExitScores(chances.reshape(len(chances), -1).mean(1), history, history)


def toy() -> tuple[ByTheFirst, Frontier]:
    """Budgets from 1 to 3: at 3 - 2 x rows leave whose score is above 1 - x."""
    budgets = np.linspace(1, 3, POINTS)
    shares = (3 - budgets) / 2
    thresholds = np.stack([1 - shares, np.full(POINTS, np.inf), np.full(POINTS, -np.inf)], 1)
    thresholds[-1, 0] = np.inf
    rates = np.stack([shares, 0 * shares, 1 - shares], 1)
    frontier = Frontier(budgets, rates, np.ones(POINTS), np.array([1.0, 2.0, 3.0]))
    return ByTheFirst(ThresholdTable(budgets, thresholds)), frontier


def audited(rows: int, seed: int = 0, *, slope: float = 0.4) -> Array:
    """Rows whose score s is uniform, and which the last exit answers alike with 1 - slope (1 - s).

    Of those that leave where the share x does, that is 1 - slope x / 2.
    """
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.001, 0.999, rows)
    # Class 0 has the score; the rest of it is class 1's or class 2's, whichever is to be answered.
    first = np.stack([scores, 1 - scores, np.zeros(rows)], 1)
    answers = first.argmax(1)
    alike = rng.uniform(size=rows) < 1 - slope * (1 - scores)
    last = 0.8 * np.eye(3)[np.where(alike, answers, 2)] + 0.1
    return np.log(np.stack([first, first, last]) + 1e-9)


def true_agreement(budget: float, slope: float = 0.4) -> float:
    return 1 - slope * (3 - budget) / 4


def test_the_curve_is_the_true_one() -> None:
    policy, frontier = toy()
    curve = AgreementCurve(policy, frontier, window=20_000)
    curve.add(audited(20_000))
    assert curve.rows == 20_000
    for budget in (1.0, 1.5, 2.0, 2.5):
        agreed = curve.at(budget)
        assert agreed.early == pytest.approx(20_000 * (3 - budget) / 2, rel=0.05)
        assert agreed.share == pytest.approx(true_agreement(budget), abs=0.01)
    assert curve.at(3.0) == AgreementCount(0, 0) and curve.at(3.0).share == 1


def test_only_the_window_counts() -> None:
    policy, frontier = toy()
    curve, fresh = (AgreementCurve(policy, frontier, window=300) for _ in range(2))
    curve.add(audited(1000, seed=1, slope=0.9))
    later = audited(300, seed=2, slope=0.1)
    for start in range(0, 300, 7):
        curve.add(later[:, start : start + 7])
    fresh.add(later)
    assert [curve.at(budget) for budget in frontier.parameters] == [
        fresh.at(budget) for budget in frontier.parameters
    ]


@pytest.mark.parametrize("kind", ALL_BUT_EENET_QUICK)
def test_rows_do_at_each_point_what_the_policy_does_there(kind: str, make_problem: object) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("scheduler.frontier.GRID_STEP", 0.1)
        patched.setattr("scheduler.fitting.eenet.SCORE_STEPS", 5)
        patched.setattr("scheduler.fitting.eenet.ASSIGNMENT_STEPS", 5)
        patched.setattr("scheduler.fitting.eenet.NUM_BUDGETS", 4)
        assert callable(make_problem)
        log_probs, labels, costs_ms = make_problem(rows=200)
        policy, frontier, _ = fit_scheduler(kind, log_probs, labels, costs_ms)
    curve = AgreementCurve(policy, frontier)
    curve.add(log_probs.astype(np.float16))
    shown = log_probs.astype(np.float16)
    replayed, answers = replay(policy, shown), shown.argmax(-1)
    for parameter in curve.frontier.parameters.tolist():
        exits = exits_taken(policy, replayed, parameter)
        early = exits < 2
        alike = answers[exits, np.arange(200)] == answers[2]
        assert curve.at(parameter) == AgreementCount(int((early & alike).sum()), int(early.sum()))


def test_pixels_answer_by_the_class_of_the_largest_share() -> None:
    policy, frontier = toy()
    curve = AgreementCurve(policy, frontier)
    shares = np.array([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1]])  # class 0 on average
    other = np.array([[0.1, 0.8, 0.1], [0.1, 0.8, 0.1]])
    for last, alike in ((shares[::-1], 1), (other, 0)):
        before = curve.at(1.0).alike
        curve.add(np.log([[shares], [shares], [last]]))
        assert curve.at(1.0).alike - before == alike


def judged(minimum: float, slope: float, wished: float, rows: int = 1000) -> AgreementFloor:
    policy, frontier = toy()
    curve, floor = AgreementCurve(policy, frontier), AgreementFloor(minimum)
    curve.add(audited(rows, slope=slope))
    floor.judge(curve, wished)
    return floor


def test_a_floor_that_is_kept_holds_nothing() -> None:
    assert judged(0.9, slope=0.1, wished=1.2).held is None


def test_a_floor_that_is_missed_holds_the_cheapest_point_that_keeps_it() -> None:
    floor = judged(0.9, slope=0.4, wished=1.2)  # 0.82 there, 0.9 from 2.0 on
    assert floor.held is not None
    assert true_agreement(floor.held) == pytest.approx(0.9, abs=0.02)


def test_it_takes_confidence_and_some_rows() -> None:
    assert judged(0.83, slope=0.4, wished=1.2).held is None  # 0.82 there: not by much
    assert judged(0.9, slope=0.4, wished=1.2, rows=20).held is None


def test_a_floor_of_1_ends_where_none_leaves_that_disagrees() -> None:
    floor = judged(1.0, slope=0.4, wished=1.2)
    assert floor.held is not None and floor.held > 2.5


def test_it_lets_go_only_where_the_budgets_own_point_suffices() -> None:
    policy, frontier = toy()
    curve, floor = AgreementCurve(policy, frontier, 1000), AgreementFloor(0.9)
    curve.add(audited(1000, seed=0))
    assert floor.judge(curve, 1.2) is not None
    held = [floor.held]
    for seed in range(1, 9):  # it gets better, a part of the window at a time
        curve.add(audited(125, seed, slope=0.05))
        before = floor.held
        floor.judge(curve, 1.2)
        assert (floor.held is None) == (curve.at(1.2).share >= 0.9)
        if before is not None:
            held.append(floor.held)
    assert held[-1] is None and held.count(None) == 1
    kept = [each for each in held if each is not None]
    assert kept == sorted(kept, reverse=True)  # the better, the cheaper
    assert floor.judge(curve, 2.0) is None


def test_a_dearer_wish_is_never_undercut() -> None:
    floor = judged(0.99, slope=0.4, wished=2.0)
    assert floor.held is not None and floor.held >= 2.0


rows = st.lists(
    st.lists(st.floats(-100, 0, allow_nan=False, width=16), min_size=9, max_size=9), max_size=60
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(rows, st.floats(-10, 10)), max_size=4),
    st.floats(0.01, 1),
    st.integers(1, 40),
)
def test_whatever_comes_the_held_point_is_on_the_frontier(
    steps: list[tuple[list[list[float]], float]], minimum: float, window: int
) -> None:
    policy, frontier = toy()
    curve, floor = AgreementCurve(policy, frontier, window), AgreementFloor(minimum)
    for shown, wished in steps:
        curve.add(np.array(shown, np.float16).reshape(-1, 3, 3).swapaxes(0, 1))
        held = floor.judge(curve, wished)
        assert held is None or held in frontier.parameters
        assert held is None or curve.at(held).share >= minimum
        agreed = curve.at(wished)
        assert 0 <= agreed.alike <= agreed.early <= curve.rows <= window
        assert 0 <= agreed.share <= 1
