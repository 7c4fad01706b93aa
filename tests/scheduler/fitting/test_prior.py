from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from profiling.calibration import Predictions
from scheduler.fitted import Scheduler
from scheduler.fitting.combiner import Candidate, fit_combiner, simplest_good
from scheduler.fitting.fit import fit_scheduler
from scheduler.fitting.prior import Prior, imbalance_warning
from scheduler.fitting.softmax_regression import fit_powers, fit_stack
from scheduler.fitting.stopping import logistic_regression
from scheduler.fitting.thresholds import geometric_table, optimised_table
from scheduler.policy import exits_taken, replay
from scheduler.thresholds import quantile_thresholds, route

Array = NDArray[np.float64]
Made = tuple[Array, NDArray[np.int64], Array]
POLICIES = ("stopping", "eenet", "maxprob", "entropy", "patience", "maxprob-opt", "entropy-opt")


# The prior


def test_weights_bring_the_rows_to_the_prior_and_have_a_mean_of_one() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    weights = Prior(("a", "b", "c"), np.array([0.2, 0.3, 0.5])).row_weights(labels)
    assert weights.mean() == pytest.approx(1)
    assert np.bincount(labels, weights) / 100 == pytest.approx(np.array([0.2, 0.3, 0.5]))


def test_the_observed_shares_weight_every_row_alike() -> None:
    labels = np.repeat([0, 1], [30, 10])
    weights = Prior(("a", "b"), np.array([0.75, 0.25])).row_weights(labels)
    assert weights == pytest.approx(np.ones(40))


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        ([0.5, 0.5, 0.5], "3 shares for 2 classes"),
        ([1.0, 0.0], "class 'b' the share 0"),
        ([-0.5, 1.5], "class 'a' the share -0.5"),
        ([np.nan, 1.0], "class 'a' the share nan"),
        ([0.5, 0.4], "sum to 0.9"),
    ],
)
def test_shares_that_are_no_prior_are_refused(shares: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Prior(("a", "b"), np.array(shares))


def test_a_class_without_rows_and_a_segmentation_are_refused() -> None:
    prior = Prior.uniform(("a", "b"))
    with pytest.raises(ValueError, match="no calibration row is of class 'b'"):
        prior.row_weights(np.zeros(5, np.int64))
    with pytest.raises(ValueError, match="--prior observed"):
        prior.row_weights(np.zeros((5, 4), np.int64))


def test_a_class_that_no_row_stands_for_can_be_left_out() -> None:
    labels = np.repeat([0, 2], [30, 10])
    prior = Prior(("a", "b", "c"), np.array([0.2, 0.5, 0.3]))
    weights = prior.row_weights(labels, all_classes=False)
    assert weights.mean() == pytest.approx(1)
    assert np.bincount(labels, weights) / 40 == pytest.approx(np.array([0.4, 0, 0.6]))


def test_imbalance_is_told_with_classes_shares_and_the_remedy() -> None:
    told = imbalance_warning(np.repeat([0, 1], [77, 3]), ("a", "b")) or ""
    assert "'a' 96.2 %" in told and "'b' 3.75 %" in told and "--prior uniform" in told
    assert imbalance_warning(np.repeat([0, 1], [50, 10]), ("a", "b")) is None
    assert imbalance_warning(np.repeat([0, 1], [51, 10]), ("a", "b")) is not None
    assert imbalance_warning(np.zeros((5, 4), np.int64), ("a", "b")) is None


# Weights mean as many rows: the reference is a fit to repeated rows


@given(seed=st.integers(0, 50))
def test_a_weighted_logistic_regression_is_one_of_repeated_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = np.c_[np.ones(60), rng.normal(size=(60, 2))]
    targets, counts = rng.uniform(size=60), rng.integers(1, 4, 60)
    penalty = np.array([1e-2, 5.0, 5.0])
    weighted = logistic_regression(inputs, targets, penalty, row_weights=counts.astype(float))
    repeated = logistic_regression(inputs.repeat(counts, 0), targets.repeat(counts), penalty)
    assert weighted == pytest.approx(repeated, abs=1e-6)


@given(seed=st.integers(0, 50))
def test_weighted_quantiles_send_shares_of_the_weight(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, weights = rng.normal(size=(200, 3)), rng.uniform(0.2, 5, 200)
    weights /= weights.mean()
    shares = rng.dirichlet(np.ones(3))
    exits = route(scores, quantile_thresholds(scores, shares, weights))
    sent = np.bincount(exits, weights, 3)
    # A row is sent whole: each exit may take one too much, which the last one lacks.
    assert sent == pytest.approx(200 * shares, abs=2 * (weights.max() + 1))


@given(seed=st.integers(0, 50))
def test_quantiles_of_equal_weights_are_the_plain_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, shares = rng.normal(size=(40, 3)).round(1), rng.dirichlet(np.ones(3))
    weighted = quantile_thresholds(scores, shares, np.ones(40))
    assert np.array_equal(weighted, quantile_thresholds(scores, shares))


@pytest.mark.parametrize("optimise", [False, True])
def test_weighted_tables_keep_the_weighted_budget(
    make_problem: Callable[..., Made], optimise: bool
) -> None:
    log_probs, labels, costs = make_problem(rows=400)
    scores = np.exp(log_probs).max(-1).T
    weights = Prior(tuple("abcde"), np.array([0.6, 0.1, 0.1, 0.1, 0.1])).row_weights(labels)
    if optimise:
        correct = (log_probs.argmax(-1) == labels).T.astype(float)
        table = optimised_table(scores, correct, costs, weights)
    else:
        table = geometric_table(scores, costs, weights)
    for budget, thresholds in zip(table.parameters, table.thresholds, strict=True):
        taken = costs[(scores >= thresholds).argmax(1)]
        assert np.average(taken, weights=weights) <= budget * (1 + 1e-9)


def test_weighted_powers_and_stacks_are_those_of_repeated_rows(
    make_problem: Callable[..., Made],
) -> None:
    logs, labels, _ = make_problem(rows=120)
    counts = np.random.default_rng(0).integers(1, 4, 120)
    weights, many = counts.astype(float), np.repeat(np.arange(120), counts)
    assert fit_powers(logs, labels, weights) == pytest.approx(
        fit_powers(logs[:, many], labels[many]), abs=1e-4
    )
    inputs = np.c_[np.ones(120), logs[0]]
    penalty, start = np.full(6, 10.0), np.zeros((6, 5))
    weighted = fit_stack(inputs, logs[-1], labels, penalty, start, weights)
    repeated = fit_stack(inputs[many], logs[-1][many], labels[many], penalty, start)
    assert weighted == pytest.approx(repeated, abs=1e-3)


def test_the_combination_is_chosen_by_weighted_loss() -> None:
    labels = np.repeat([0, 1], 50)
    good_for = [
        np.where((labels == each)[:, None], [[-0.1, -2.4]], [[-0.7, -0.69]]) for each in (0, 1)
    ]
    first, second = (np.where((labels == 1)[:, None], logs[:, ::-1], logs) for logs in good_for)
    tried = [Candidate(logs, lambda: None) for logs in (first, second)]
    towards_1 = Prior(("a", "b"), np.array([0.05, 0.95])).row_weights(labels)
    assert simplest_good(tried, labels) is tried[0]
    assert simplest_good(tried, labels, towards_1) is tried[1]


def test_a_combiner_with_equal_weights_is_the_plain_one(make_problem: Callable[..., Made]) -> None:
    log_probs, labels, _ = make_problem(rows=400)
    plain, weighted = (
        fit_combiner(log_probs, labels, weights, seed=0) for weights in (None, np.ones(400))
    )
    assert np.array_equal(plain.log_probs, weighted.log_probs)


# Fits for another prior


def skewed(make_problem: Callable[..., Made], rows: int, seed: int) -> Predictions:
    """Rows of which class 0 has its share, and each later one half of the one before."""
    log_probs, labels, _ = make_problem(rows=rows, seed=seed)
    rng = np.random.default_rng(seed)
    # Rarer classes are harder, and exits less sure of them, or the prior would not matter.
    harder = labels[None, :, None]
    log_probs = (log_probs + harder * rng.normal(size=log_probs.shape)) / (1 + 2 * harder)
    log_probs -= np.log(np.exp(log_probs).sum(-1, keepdims=True))
    kept = rng.uniform(size=rows) < 0.5**labels
    return Predictions(log_probs[:, kept], labels[kept])


def spent_on(scheduler: Scheduler, rows: Predictions, budget: float, weights: Array) -> float:
    parameter = scheduler.frontier.at_cost(budget).parameter
    log_probs = scheduler.combiner.combine_all(rows.log_probs)
    exits = exits_taken(scheduler.policy, replay(scheduler.policy, log_probs), parameter)
    return float(np.average(scheduler.frontier.costs_ms[exits], weights=weights))


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.usefixtures("quick_fits")
def test_every_policy_keeps_budgets_under_the_prior_it_is_fitted_for(
    kind: str, make_problem: Callable[..., Made]
) -> None:
    rows, costs = skewed(make_problem, 1500, 0), np.array([1.0, 1.1, 1.3])
    weights = Prior.uniform(tuple("abcde")).row_weights(rows.labels)
    observed, uniform = (fit_scheduler(kind, *rows, costs, each) for each in (None, weights))
    budgets = np.linspace(1.05, 1.25, 5).tolist()
    kept = [spent_on(uniform, rows, budget, weights) / budget for budget in budgets]
    assert max(kept) <= 1 + 1e-9
    spent = [spent_on(observed, rows, budget, weights) / budget for budget in budgets]
    assert max(spent) > 1.005, "a fit to the observed shares overspends under other ones"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stopping", "maxprob-opt"])
@pytest.mark.usefixtures("quick_fits")
def test_the_frontier_expects_what_the_prior_brings(
    kind: str, make_problem: Callable[..., Made]
) -> None:
    rows, fresh = (skewed(make_problem, 6000, seed) for seed in (0, 1))
    costs, prior = np.array([1.0, 1.1, 1.3]), Prior.uniform(tuple("abcde"))
    weights, of_fresh = (prior.row_weights(each.labels) for each in (rows, fresh))
    plain, scheduler = (fit_scheduler(kind, *rows, costs, each) for each in (None, weights))
    point = scheduler.frontier.at_cost(1.15)
    replayed = replay(scheduler.policy, fresh.log_probs)
    exits = exits_taken(scheduler.policy, replayed, point.parameter)
    right = np.average(fresh.correct[np.arange(len(exits)), exits], weights=of_fresh)
    assert point.expected_accuracy == pytest.approx(right, abs=0.05)
    assert abs(plain.frontier.at_cost(1.15).expected_accuracy - right) > 0.05


def test_weights_that_do_not_fit_are_refused(make_problem: Callable[..., Made]) -> None:
    problem = make_problem(rows=30)
    for weights in (np.ones(29), np.zeros(30), np.full(30, np.nan)):
        with pytest.raises(ValueError, match="positive weight for each of the 30 rows"):
            fit_scheduler("maxprob", *problem, weights)
