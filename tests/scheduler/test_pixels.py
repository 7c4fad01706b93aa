from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.baselines import ConfidencePolicy, PatiencePolicy
from scheduler.eenet import EENetPolicy, ExitScorer
from scheduler.fitted import Scheduler, load_scheduler, save_scheduler
from scheduler.fitting.fit import fit_scheduler
from scheduler.pixels import (
    correct_share,
    pixel_histories,
    pixels_of,
    row_histories,
    row_means,
)
from scheduler.policy import ExitPolicy, exits_taken, replay, score_all
from scheduler.stopping import StoppingPolicy
from scheduler.thresholds import ThresholdTable
from tests.policies import ALL_BUT_EENET_QUICK

Array = NDArray[np.float64]
Made = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]

COSTS = np.array([1.0, 1.5, 2.5])


def log_probs_of(rows: int, pixels: int, classes: int = 4, seed: int = 0) -> Array:
    logits = 2 * np.random.default_rng(seed).normal(size=(3, rows, pixels, classes))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def policies(classes: int = 4) -> dict[str, ExitPolicy]:
    """One of every kind, with weights of no meaning; eenet's scores read none of the exits before,
    of which a row has but one.
    """
    rng, closed = np.random.default_rng(5), ThresholdTable.closed(3)
    widths = [(6, 3), (6, 3), (6, 1)]
    psi = [np.r_[rng.normal(size=classes + 3), np.zeros(k)] for k in range(3)]
    return {
        "maxprob": ConfidencePolicy(closed, "maxprob"),
        "entropy": ConfidencePolicy(closed, "entropy"),
        "patience": PatiencePolicy(closed),
        "eenet": EENetPolicy(closed, ExitScorer(tuple(psi))),
        "stopping": StoppingPolicy(
            np.array([0.0, 0.5]),
            np.diff(COSTS),
            tuple(
                rng.normal(0, 0.2, shape) for shape in widths
            ),  # no logit so large that it drowns
            tuple(rng.normal(0, 0.2, (classes, columns)) for _, columns in widths),
        ),
    }


KINDS = list(policies())


def logit(chances: Array) -> Array:
    return np.log(chances / (1 - chances))


# The four functions


def test_rows_of_a_classification_pass_untouched() -> None:
    rows, history = log_probs_of(5, 1)[0, :, 0], np.zeros((5, 4))
    assert pixels_of(rows) is rows
    assert pixel_histories(history, rows, 4) is history
    assert row_histories(history, 5) is history
    assert row_means(history, 5) is history


def test_pixels_are_rows_of_their_own_and_their_histories_stay_with_them() -> None:
    rows = log_probs_of(5, 7)[0]
    pixels, start = pixels_of(rows), np.arange(10.0).reshape(5, 2)
    assert np.array_equal(pixels.reshape(5, 7, 4), rows)
    histories = pixel_histories(start, pixels, 2)
    assert np.array_equal(histories.reshape(5, 7, 2), np.repeat(start[:, None], 7, 1))
    kept = np.random.default_rng(0).normal(size=(35, 2))
    carried = row_histories(kept, 5)
    assert carried.shape == (5, 14)
    assert np.array_equal(pixel_histories(carried, pixels, 2), kept)
    assert np.array_equal(row_means(kept, 5), kept.reshape(5, 7, 2).mean(1))
    assert np.array_equal(row_means(kept[:, 0], 5), kept[:, 0].reshape(5, 7).mean(1))


def test_shares_right_are_0_or_1_or_those_of_the_pixels() -> None:
    of_one = np.log([[[0.9, 0.1], [0.2, 0.8]], [[0.4, 0.6], [0.3, 0.7]]])
    assert correct_share(of_one, np.array([0, 1])).tolist() == [[1, 0], [1, 1]]
    of_two = of_one[:, None]  # (K, 1, P, C)
    assert correct_share(of_two, np.array([[0, 1]])).tolist() == [[1, 0.5]]


# Rows of pixels and rows of one


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pixels", [1, 2, 64])
def test_equal_pixels_are_scored_and_decided_like_one(kind: str, pixels: int) -> None:
    policy, one = policies()[kind], log_probs_of(30, 1)[:, :, 0]
    many = np.repeat(one[:, :, None], pixels, 2)
    for exit, (of_one, of_many) in enumerate(
        zip(replay(policy, one), replay(policy, many), strict=True)
    ):
        assert of_many.scores == pytest.approx(of_one.scores, rel=1e-12, abs=1e-12)
        assert of_many.continuation_values == pytest.approx(
            of_one.continuation_values, rel=1e-12, abs=1e-12
        )
        price = np.array([0.3])
        decided, expected = policy.decide(exit, of_many, price), policy.decide(exit, of_one, price)
        assert decided.thresholds == pytest.approx(expected.thresholds, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(0, 99))
def test_the_score_of_a_row_is_the_mean_of_its_pixels(kind: str, seed: int) -> None:
    """Of their logits, where the score is a chance: what goes into it is a mean."""
    policy, rows = policies()[kind], log_probs_of(6, 9, seed=seed)
    together = score_all(policy, rows)
    apart = score_all(policy, rows.reshape(3, 54, 4)).reshape(6, 9, 3)
    if kind == "stopping":
        assert logit(together) == pytest.approx(logit(apart).mean(1), rel=1e-9)
    else:
        assert together == pytest.approx(apart.mean(1), rel=1e-12)


def test_a_policy_with_scores_of_exits_before_reads_those_of_the_row() -> None:
    first, second = np.zeros(7), np.zeros(8)
    first[4], second[7] = 2.0, 1.0  # twice the max probability, clamped to 1 in the history
    policy = EENetPolicy(ThresholdTable.closed(2), ExitScorer((first, second)))
    probs = np.array([[[0.7, 0.1, 0.1, 0.1], [0.4, 0.2, 0.2, 0.2]]] * 2)[:, None]  # (K, 1, P, C)
    scores = score_all(policy, np.log(probs))
    assert scores == pytest.approx(np.array([[0.7 + 0.4, 1.0]]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("pixels", "classes"), [(64, 5), (9, 2), (25, 19)])
def test_scores_of_rows_do_not_depend_on_the_batch(kind: str, pixels: int, classes: int) -> None:
    """To the last bit, where thresholds are scores of other rows."""
    policy, rows = policies(classes)[kind], log_probs_of(40, pixels, classes)
    together = score_all(policy, rows)
    alone = np.concatenate([score_all(policy, rows[:, n : n + 1]) for n in range(40)])
    if kind == "stopping":
        assert together == pytest.approx(alone, rel=1e-12)
    else:
        assert np.array_equal(together, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_join_others_between_exits(kind: str) -> None:
    policy, rows = policies()[kind], log_probs_of(6, 9)
    whole = score_all(policy, rows)
    first = [policy.score(0, rows[0, part], policy.start(3)) for part in ([0, 1, 2], [3, 4, 5])]
    history = np.concatenate([scored.history for scored in first])
    assert history.ndim == 2 and len(history) == 6
    mixed = [5, 0, 3]
    second = policy.score(1, rows[1, mixed], history[mixed])
    assert second.scores == pytest.approx(whole[mixed, 1], rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_pixels_does_not_count(kind: str) -> None:
    rows, order = log_probs_of(10, 16), np.random.default_rng(0).permutation(16)
    policy = policies()[kind]
    assert score_all(policy, rows[:, :, order]) == pytest.approx(score_all(policy, rows))


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_leaves_the_history_given_as_it_was(kind: str) -> None:
    policy, rows = policies()[kind], log_probs_of(4, 9)
    history = policy.score(0, rows[0], policy.start(4)).history
    before = history.copy()
    policy.score(1, rows[1], history)
    assert np.array_equal(history, before)


# Fitting


@pytest.fixture(scope="module")
def problem() -> Made:
    """200 rows of 16 pixels; a row's pixels are as easy as one another, more or less."""
    return made(200, seed=0)


def made(rows: int, seed: int) -> Made:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (rows, 16))
    easiness = rng.uniform(0, 1, (rows, 1, 1)) * rng.uniform(0.5, 1.5, (rows, 16, 1))
    logits = rng.normal(size=(3, rows, 16, 4))
    for k, strength in enumerate((3, 5, 8)):
        logits[k] += strength * easiness * np.eye(4)[labels]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), labels, COSTS


@pytest.fixture(scope="module", params=ALL_BUT_EENET_QUICK)
def fitted(
    request: pytest.FixtureRequest, problem: Made, fitting_quickly: Callable[..., object]
) -> Scheduler:
    with fitting_quickly():  # type: ignore[attr-defined]
        return fit_scheduler(request.param, *problem)


def test_every_policy_keeps_its_budgets_on_the_rows_it_saw_and_nearly_on_others(
    fitted: Scheduler, problem: Made
) -> None:
    unseen = made(1000, seed=1)[0]
    for budget in (1.1, 1.4, 1.8, 2.2):
        at = fitted.frontier.at_cost(budget).parameter
        costs = [
            COSTS[exits_taken(fitted.policy, replay(fitted.policy, rows), at)]
            for rows in (problem[0], unseen)
        ]
        assert costs[0].mean() <= budget * (1 + 1e-9)
        error = costs[1].std() * np.sqrt(1 / 200 + 1 / 1000)
        assert costs[1].mean() <= budget + 3 * error


def test_every_policy_beats_leaving_by_lot(fitted: Scheduler) -> None:
    """Between all at the first exit and all at the last, which costs and earns in proportion."""
    log_probs, labels, _ = made(1000, seed=2)
    right, rows = correct_share(log_probs, labels), np.arange(1000)
    at = fitted.frontier.at_cost(1.6).parameter
    exits = exits_taken(fitted.policy, replay(fitted.policy, log_probs), at)
    by_lot = np.interp(COSTS[exits].mean(), COSTS[[0, -1]], right.mean(0)[[0, -1]])
    assert right[rows, exits].mean() > by_lot


def test_the_frontier_tells_shares_of_pixels(fitted: Scheduler, problem: Made) -> None:
    right = correct_share(*problem[:2]).mean(0)
    told = fitted.frontier.expected_accuracy
    assert told[[0, -1]] == pytest.approx(right[[0, -1]])


def test_every_policy_decides_the_same_once_saved_and_loaded(
    fitted: Scheduler, problem: Made, tmp_path: Path
) -> None:
    save_scheduler(fitted, tmp_path)
    loaded = load_scheduler(tmp_path)
    before, after = (replay(each.policy, problem[0]) for each in (fitted, loaded))
    for at in fitted.frontier.parameters[[0, len(fitted.frontier) // 2, -1]].tolist():
        assert np.array_equal(
            exits_taken(fitted.policy, before, at), exits_taken(loaded.policy, after, at)
        )


@pytest.mark.parametrize("kind", ALL_BUT_EENET_QUICK)
def test_rows_of_one_pixel_are_fitted_like_a_classification(
    make_problem: Callable[..., Made],
    fitting_quickly: Callable[..., object],
    kind: str,
) -> None:
    log_probs, labels, costs = make_problem(rows=60)
    with fitting_quickly():  # type: ignore[attr-defined]
        of_rows = fit_scheduler(kind, log_probs, labels, costs)
        of_pixels = fit_scheduler(kind, log_probs[:, :, None], labels[:, None], costs)
    assert np.array_equal(of_rows.frontier.exit_rates, of_pixels.frontier.exit_rates)
    assert np.array_equal(of_rows.frontier.expected_accuracy, of_pixels.frontier.expected_accuracy)
