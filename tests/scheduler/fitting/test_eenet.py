from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scheduler.confidence import finite_log_probs
from scheduler.eenet import EENetPolicy, load_published_scheduler
from scheduler.fitting.eenet import fit_eenet, fit_published
from scheduler.fitting.thresholds import fit_confidence
from scheduler.policy import score_all
from scheduler.thresholds import ThresholdPolicy, route, tilt

SMALL = {"rounds": 2, "restarts": 1}
BUDGETS = np.array([1.04, 1.08, 1.13, 1.18, 1.25])

Problem = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]


@pytest.fixture(scope="module")
def problem(make_problem: Callable[..., Problem]) -> Problem:
    return make_problem()


@pytest.fixture(scope="module")
def fitted(problem: Problem) -> EENetPolicy:
    return fit_eenet(*problem, **SMALL)


def tiny(**overrides: Any) -> dict[str, Any]:
    return {"rounds": 1, "restarts": 1, "budgets_ms": BUDGETS[1:4]} | overrides


def spent(policy: ThresholdPolicy, log_probs: NDArray[np.floating], costs: Any) -> Any:
    """Mean cost of the rows at every budget of the policy's table, (G,)."""
    scores = score_all(policy, log_probs)
    return np.array([costs[route(scores, row)].mean() for row in policy.table.thresholds])


def accuracy(policy: ThresholdPolicy, problem: Problem, budget: float) -> float:
    log_probs, labels, _ = problem
    exits = route(score_all(policy, log_probs), policy.thresholds(budget))
    return float((log_probs.argmax(-1)[exits, np.arange(len(labels))] == labels).mean())


def assert_sound(policy: EENetPolicy, problem: Problem) -> None:
    """No NaN anywhere, and every budget of the grid kept by the scores as served."""
    log_probs, _, costs = problem
    assert np.isfinite(score_all(policy, log_probs)).all()
    assert all(np.isfinite(psi).all() for psi in policy.scorer.weights)
    assert not np.isnan(policy.table.thresholds).any()
    assert (spent(policy, log_probs, costs) <= policy.table.parameters * (1 + 1e-12)).all()


def test_every_budget_is_kept_on_the_calibration_rows(
    fitted: EENetPolicy, problem: Problem
) -> None:
    assert_sound(fitted, problem)


def test_the_table_spans_the_range_of_costs(fitted: EENetPolicy, problem: Problem) -> None:
    parameters = fitted.table.parameters
    assert (parameters[0], parameters[-1]) == (1.0, 1.3)
    assert (np.diff(parameters) > 0).all()
    assert (parameters[1:] / parameters[:-1] < 1.00302).all()


def test_budgets_without_ties_are_spent(fitted: EENetPolicy, problem: Problem) -> None:
    log_probs, _, costs = problem
    assert (spent(fitted, log_probs, costs) >= 0.99 * fitted.table.parameters).all()


def test_budgets_asked_for_have_a_row_of_their_own(problem: Problem) -> None:
    policy = fit_eenet(*problem, **tiny())
    assert np.isin(BUDGETS[1:4], policy.table.parameters).all()


def test_accuracy_is_at_least_that_of_max_probability(
    fitted: EENetPolicy, problem: Problem
) -> None:
    rival = fit_confidence("maxprob", *problem)
    for budget in BUDGETS:
        assert accuracy(fitted, problem, budget) >= accuracy(rival, problem, budget) - 0.01


def first_exit_never_right_where_it_answers_0() -> Problem:
    """The first exit is always wrong where it answers 0, however sure it is of it."""
    rng = np.random.default_rng(0)
    rows = 800
    answers, sure = rng.integers(0, 2, rows), rng.uniform(0.6, 0.99, rows)
    first = np.where(np.arange(2) == answers[:, None], sure[:, None], 1 - sure[:, None])
    labels = np.where(answers == 0, 1, np.where(rng.uniform(size=rows) < 0.95, 1, 0))
    last = np.where(np.arange(2) == labels[:, None], 0.99, 0.01)
    return np.log(np.stack([first, last])), labels, np.array([1.0, 1.3])


@pytest.mark.parametrize(
    "budgets",
    [pytest.param(None, marks=pytest.mark.slow), [1.15]],
    ids=["all budgets", "one budget"],
)
def test_scores_learn_what_max_probability_cannot_see(budgets: list[float] | None) -> None:
    problem = first_exit_never_right_where_it_answers_0()
    budgets_ms = None if budgets is None else np.array(budgets)
    fitted = fit_eenet(*problem, rounds=6, budgets_ms=budgets_ms)
    rival = fit_confidence("maxprob", *problem)
    assert accuracy(fitted, problem, 1.15) > accuracy(rival, problem, 1.15) + 0.1


@pytest.mark.slow
def test_restarts_never_lower_the_accuracy_that_the_fit_is_chosen_by(problem: Problem) -> None:
    once, thrice = (
        np.mean([accuracy(fit, problem, budget) for budget in BUDGETS[1:4]])
        for fit in (fit_eenet(*problem, **tiny(restarts=n)) for n in (1, 3))
    )
    assert thrice >= once - 1e-12


def test_same_seed_gives_the_same_result_whatever_torch_drew_before(problem: Problem) -> None:
    torch.manual_seed(1)
    once = fit_eenet(*problem, **tiny(seed=3))
    torch.manual_seed(2)
    again = fit_eenet(*problem, **tiny(seed=3))
    for a, b in zip(once.scorer.weights, again.scorer.weights, strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(once.table.thresholds, again.table.thresholds)


def test_fitting_leaves_the_threads_of_torch_as_they_were(problem: Problem) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fit_eenet(*problem, **tiny())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_probabilities_of_exactly_zero_and_one_give_no_nan(
    make_problem: Callable[..., Problem],
) -> None:
    log_probs, labels, costs = make_problem(rows=200)
    certain = np.full(log_probs.shape, -np.inf)
    np.put_along_axis(certain, log_probs.argmax(-1)[..., None], 0.0, -1)
    mixed = np.where(np.arange(200)[:, None] % 2 == 0, certain, log_probs)
    for rows in (certain, mixed):
        assert_sound(fit_eenet(rows, labels, costs, **tiny()), (rows, labels, costs))


@pytest.mark.parametrize("shift", [0, 1], ids=["all right", "all wrong"])
def test_exits_that_always_agree_with_each_other_on_success_fit(
    make_problem: Callable[..., Problem], shift: int
) -> None:
    log_probs, _, costs = make_problem(rows=200)
    log_probs = np.stack([log_probs[0]] * 3)
    labels = (log_probs[0].argmax(-1) + shift) % log_probs.shape[-1]
    fitted = fit_eenet(log_probs, labels, costs, **tiny())
    assert_sound(fitted, (log_probs, labels, costs))


def test_half_precision_records_fit(make_problem: Callable[..., Problem]) -> None:
    log_probs, labels, costs = make_problem(rows=200)
    halves = log_probs.astype(np.float16)
    assert_sound(fit_eenet(halves, labels, costs, **tiny()), (halves, labels, costs))


@pytest.mark.slow
def test_without_the_vote_its_weight_stays_where_it_started(
    make_problem: Callable[..., Problem],
) -> None:
    # Right only at first, and only if sure of class 0: the kept weights must be learned ones.
    log_probs, labels, costs = make_problem(rows=400)
    labels = np.where(log_probs[0].argmax(-1) == 0, 0, labels)
    with_vote, without = (
        fit_eenet(log_probs, labels, costs, **SMALL, use_vote=use_vote)
        for use_vote in (True, False)
    )
    vote = log_probs.shape[-1] + 2
    assert any(psi[vote] != 0 for psi in with_vote.scorer.weights)
    assert all(psi[vote] == 0 for psi in without.scorer.weights)
    assert any(psi[0] != 0 for psi in without.scorer.weights)


# Published weights


@pytest.fixture(params=["cifar10_resnet56", "sst2_bert"])
def published(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[EENetPolicy, NDArray[np.float64], NDArray[np.float64]]:
    """A published policy with the log-probabilities (K, 200, C) and costs (K,) of its file."""
    monkeypatch.setattr("scheduler.frontier.GRID_STEP", 0.03)
    path = Path(__file__).resolve().parents[2] / "data" / f"golden_{request.param}.npz"
    with np.load(path) as arrays:
        return load_published_scheduler(path), finite_log_probs(arrays["probs"]), arrays["costs"]


Published = tuple[EENetPolicy, NDArray[np.float64], NDArray[np.float64]]


def test_published_scores_keep_every_budget_and_nearly_spend_it(published: Published) -> None:
    policy, log_probs, costs = published
    fitted = fit_published(policy, log_probs, costs)
    budgets, realised = fitted.table.parameters, spent(fitted, log_probs, costs)
    assert (budgets[0], budgets[-1]) == (costs[0], costs[-1])
    assert (realised <= budgets * (1 + 1e-12)).all()
    # With 200 rows, one that goes one exit further may be half a hundredth of the most expensive
    # stage.
    assert (realised >= 0.99 * budgets - np.diff(costs).max() / 200).all()


def test_fitting_keeps_the_published_scores_and_drops_the_assignment(published: Published) -> None:
    policy, log_probs, costs = published
    fitted = fit_published(policy, log_probs, costs)
    assert np.array_equal(score_all(fitted, log_probs), score_all(policy, log_probs))
    with pytest.raises(ValueError, match="no assignment weights"):
        fitted.assignment(np.exp(log_probs))


def test_exit_shares_are_those_of_the_published_assignment_at_the_budget_it_costs(
    published: Published,
) -> None:
    policy, log_probs, costs = published
    shares = policy.assignment(np.exp(log_probs)).mean(0)
    fitted = fit_published(policy, log_probs, costs)
    near = np.searchsorted(fitted.table.parameters, [0.9 * shares @ costs, shares @ costs])
    for budget in fitted.table.parameters[near]:
        exits = route(score_all(fitted, log_probs), fitted.thresholds(budget))
        taken = np.bincount(exits, minlength=len(costs)) / len(exits)
        assert taken == pytest.approx(tilt(shares, costs, budget), abs=0.02)


def test_published_weights_of_other_exits_are_refused(published: Published) -> None:
    policy, log_probs, costs = published
    with pytest.raises(ValueError, match="probs has the shape"):
        fit_published(policy, log_probs[1:], costs[1:])
