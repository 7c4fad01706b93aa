from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from profiling.calibration import load_recorded
from scheduler.bounds import betting_upper_bound, binomial_upper_bound
from scheduler.fitting.fit import fit_scheduler
from scheduler.frontier import Frontier
from scheduler.guarantee import (
    FrontierBounds,
    Measure,
    Promise,
    bound_points,
    certify,
    check_rows,
    exit_losses,
    rows_needed,
    upper_bound,
)
from scheduler.policy import exits_taken, replay
from tests.bundles import variant_of

pytestmark = pytest.mark.usefixtures("quick_fits")

Problem = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]
MakeProblem = Callable[..., Problem]
EPSILON = 0.02


def frontier_of(points: int) -> Frontier:
    """Points whose cost rises evenly from 1 to 2."""
    late = np.linspace(0, 1, points)
    return Frontier(
        np.arange(points, dtype=float), np.stack([1 - late, late], 1), late, np.array([1.0, 2.0])
    )


def risky_rows(rng: np.random.Generator, points: int, rows: int) -> NDArray[np.bool_]:
    """Whether each row differs at each point, (G, N): ever fewer, and none at the last."""
    return rng.uniform(0, 0.3, rows) < np.linspace(0.1, 0, points)[:, None]


def certificate_of(losses: NDArray[Any], promise: Promise) -> Any:
    points, rows = losses.shape
    bounds = bound_points(points, losses.__getitem__, promise)
    found = FrontierBounds(frontier_of(points), -9.0, promise.confidence, rows, bounds)
    return found.certify(promise.epsilon)


@given(
    seed=st.integers(0, 10**6),
    points=st.integers(1, 30),
    rows=st.integers(1, 600),
    epsilon=st.floats(1e-4, 0.5),
    confidence=st.floats(0.5, 0.999),
)
@settings(max_examples=80)
def test_the_walk_stops_before_the_first_point_that_fails(
    seed: int, points: int, rows: int, epsilon: float, confidence: float
) -> None:
    rng = np.random.default_rng(seed)
    losses = risky_rows(rng, points, rows)[rng.permutation(points)]  # in no order at all
    losses[-1] = False
    promise = Promise("disagreement", epsilon, confidence)
    found = certificate_of(losses, promise)
    counts = losses.sum(1).tolist()
    passes = [binomial_upper_bound(count, rows, confidence) <= epsilon for count in counts]
    place = points - 1
    while place > 0 and passes[place - 1]:
        place -= 1
    assert (found.epsilon, found.confidence, found.rows) == (epsilon, confidence, rows)
    if place == points - 1:
        assert (found.certified, found.parameter, found.bound) == (False, -9.0, 0.0)
        assert found.expected_cost_ms == 2.0
    else:
        assert found.certified and found.parameter == place
        assert found.bound == binomial_upper_bound(counts[place], rows, confidence)
        assert found.expected_cost_ms == pytest.approx(1 + place / (points - 1))


@given(seed=st.integers(0, 10**6), epsilon=st.floats(0.01, 0.3), confidence=st.floats(0.5, 0.99))
@settings(max_examples=50)
def test_a_stricter_promise_never_costs_less(seed: int, epsilon: float, confidence: float) -> None:
    losses = risky_rows(np.random.default_rng(seed), 20, 500)
    cost = certificate_of(losses, Promise("disagreement", epsilon, confidence)).expected_cost_ms
    for stricter in (
        Promise("disagreement", epsilon / 2, confidence),
        Promise("disagreement", epsilon, (1 + confidence) / 2),
    ):
        assert certificate_of(losses, stricter).expected_cost_ms >= cost
    bounds = bound_points(20, losses.__getitem__, Promise("disagreement", 0.4, confidence))
    shared = FrontierBounds(frontier_of(20), -9.0, confidence, 500, bounds)
    assert shared.certify(epsilon).expected_cost_ms == cost  # one walk serves every epsilon


def test_losses_are_against_the_last_exit() -> None:
    answers = np.array([[0, 1, 2, 0], [0, 0, 1, 1]])  # (K, N)
    log_probs = np.log(np.eye(3)[answers] * 0.7 + 0.1)
    labels = np.array([0, 1, 1, 2])
    differs = exit_losses("disagreement", log_probs, None)
    assert differs.tolist() == [[False, True, True, True], [False] * 4]
    lost = exit_losses("accuracy_loss", log_probs, labels)
    assert lost.tolist() == [[0, -1, 1, 0], [0, 0, 0, 0]]
    with pytest.raises(ValueError, match="an accuracy loss needs labels"):
        exit_losses("accuracy_loss", log_probs, None)


def test_pixels_count_by_their_share_and_are_bounded_by_betting() -> None:
    answers = np.array([[[0, 1], [1, 1]], [[0, 0], [1, 1]]])  # (K, N, P)
    log_probs = np.log(np.eye(2)[answers] * 0.7 + 0.1)
    differs = exit_losses("disagreement", log_probs, None)
    assert differs.tolist() == [[0.5, 0], [0, 0]]
    promise, shares = Promise("disagreement", 0.1), np.full(300, 0.01)
    assert upper_bound(shares, promise) == betting_upper_bound(shares, 0.95, low=0, high=1)
    assert 0.01 < upper_bound(shares, promise) < 0.05


@pytest.mark.parametrize(
    ("epsilon", "confidence", "rows"), [(0.01, 0.95, 299), (0.005, 0.95, 598), (0.02, 0.99, 228)]
)
def test_too_few_rows_are_told_with_the_number_needed(
    epsilon: float, confidence: float, rows: int
) -> None:
    promise = Promise("disagreement", epsilon, confidence)
    assert rows_needed(promise, exact=True) == rows
    assert binomial_upper_bound(0, rows, confidence) <= epsilon
    assert binomial_upper_bound(0, rows - 1, confidence) > epsilon
    check_rows(promise, rows, exact=True)
    with pytest.raises(ValueError, match=rf"{rows - 1} certification rows; .* at least {rows},"):
        check_rows(promise, rows - 1, exact=True)


@given(epsilon=st.floats(1e-4, 0.5), confidence=st.floats(0.5, 0.999))
@settings(max_examples=40)
def test_fewer_rows_than_needed_never_suffice(epsilon: float, confidence: float) -> None:
    for measure in ("disagreement", "accuracy_loss"):
        exact = measure == "disagreement"
        promise = Promise(measure, epsilon, confidence)
        fewer = rows_needed(promise, exact=exact) - 1
        losses = np.zeros(fewer, np.bool_ if exact else np.float64)
        assert fewer == 0 or upper_bound(losses, promise) > epsilon


def test_tiny_promises_need_no_endless_rows() -> None:
    promise = Promise("accuracy_loss", 5e-324, 0.95)
    assert rows_needed(promise, exact=False) == 10**18
    assert rows_needed(Promise("disagreement", 1e-9), exact=True) == pytest.approx(3e9, rel=0.01)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_shares_outside_0_to_1_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"^max_disagreement is .*; give a share above 0"):
        Promise("disagreement", share)
    with pytest.raises(ValueError, match=r"^confidence is .*; give a share above 0"):
        Promise("disagreement", 0.01, share)


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="'mistakes' is none of disagreement, accuracy_loss"):
        Promise("mistakes", 0.01)  # type: ignore[arg-type]


@pytest.mark.parametrize("measure", ["disagreement", "accuracy_loss"])
def test_a_policy_is_certified_at_a_point_of_its_frontier(
    make_problem: MakeProblem, measure: Measure
) -> None:
    log_probs, labels, costs_ms = make_problem(rows=1200)
    fitted = fit_scheduler("stopping", log_probs[:, :400], None, costs_ms)
    answers = fitted.combiner.combine_all(log_probs[:, 400:])
    rows, promise = (answers, labels[400:]), Promise(measure, 0.15)
    found = certify(fitted.policy, fitted.frontier, *rows, promise)
    assert found.certified and found.rows == 800
    assert costs_ms[0] <= found.expected_cost_ms < costs_ms[-1]
    exits = exits_taken(fitted.policy, replay(fitted.policy, rows[0]), found.parameter)
    losses = exit_losses(measure, *rows)[exits, np.arange(800)]
    assert found.bound == upper_bound(losses, promise)
    assert losses.mean() < found.bound <= 0.15
    early_exits_are_wrong = np.concatenate([np.roll(rows[0][:-1], 1, axis=-1), rows[0][-1:]])
    nothing = certify(
        fitted.policy, fitted.frontier, early_exits_are_wrong, rows[1], Promise(measure, 0.01)
    )
    assert not nothing.certified and nothing.bound == 0
    assert nothing.parameter == fitted.policy.never_exit_parameter
    assert nothing.expected_cost_ms == costs_ms[-1]
    with pytest.raises(ValueError, match="800 certification rows"):
        certify(fitted.policy, fitted.frontier, *rows, Promise(measure, 0.001))


def test_a_network_of_one_exit_has_nothing_to_certify(make_problem: MakeProblem) -> None:
    log_probs, _, costs_ms = make_problem(rows=400)
    fitted = fit_scheduler("stopping", log_probs[:1], None, costs_ms[:1])
    found = certify(
        fitted.policy, fitted.frontier, log_probs[:1], None, Promise("disagreement", 0.05)
    )
    assert (found.certified, found.bound, found.expected_cost_ms) == (False, 0, costs_ms[0])


def test_promises_hold_on_unseen_rows_where_point_estimates_do_not(shipped_bundle: Path) -> None:
    recorded = load_recorded(variant_of(shipped_bundle).predictions)
    calibration, test = recorded.calibration, recorded.test
    fitted = fit_scheduler(
        "stopping", calibration.log_probs[:, :1000], None, np.array([1.0, 2.0, 3.0])
    )
    answers = fitted.combiner.combine_all(test.log_probs)
    replayed = replay(fitted.policy, answers)
    losses = exit_losses("disagreement", answers, None)
    every, points = np.arange(losses.shape[1]), len(fitted.frontier)
    parameters = np.interp(  # quick fits have few points
        np.linspace(0, points - 1, 200), np.arange(points), fitted.frontier.parameters
    )
    matrix = np.stack(
        [
            losses[exits_taken(fitted.policy, replayed, parameter), every]
            for parameter in parameters.tolist()
        ]
    )
    rng, promise, broken, naive = np.random.default_rng(0), Promise("disagreement", EPSILON), 0, 0
    for _ in range(200):
        order = rng.permutation(len(every))
        rows, rest = matrix[:, order[:1000]], matrix[:, order[1000:]].mean(1)
        found = certificate_of(rows, promise)
        broken += bool(found.certified and rest[int(found.parameter)] > EPSILON)
        below = np.flatnonzero(rows.mean(1) > EPSILON)
        naive += bool(rest[below[-1] + 1 if len(below) else 0] > EPSILON)
    assert broken <= 14  # 7 %
    assert naive > 40
