from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import scheduler.fitting.fit
import scheduler.fitting.thresholds
from scheduler.combiner import OWN_OUTPUTS
from scheduler.confidence import finite_log_probs
from scheduler.eenet import load_published_scheduler
from scheduler.fitted import Scheduler
from scheduler.fitting.combiner import FittedCombiner
from scheduler.fitting.fit import check_calibration, check_costs, fit_scheduler
from scheduler.policy import CalibrationSet, exits_taken, replay, score_all
from scheduler.thresholds import ThresholdPolicy
from tests.policies import ALL_BUT_EENET_QUICK

Array = NDArray[np.float64]
Made = tuple[Array, NDArray[np.int64], Array]

BUDGETS = (1.0, 1.03, 1.07, 1.12, 1.18, 1.25, 1.3)
PUBLISHED = Path(__file__).resolve().parents[2] / "data" / "golden_cifar10_resnet56.npz"


@pytest.fixture(scope="module", autouse=True)
def quick_eenet() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        for steps in ("SCORE_STEPS", "ASSIGNMENT_STEPS"):
            patched.setattr(f"scheduler.fitting.eenet.{steps}", 15)
        patched.setattr("scheduler.fitting.eenet.NUM_BUDGETS", 8)
        yield


class Fitted(NamedTuple):
    """A fitted scheduler, what it was fitted to and rows it was not fitted to, as it answers."""

    scheduler: Scheduler
    problem: CalibrationSet
    fresh: CalibrationSet


@pytest.fixture(scope="module", params=ALL_BUT_EENET_QUICK)
def fitted(request: pytest.FixtureRequest, make_problem: Callable[..., Made]) -> Fitted:
    problem, fresh = (CalibrationSet(*make_problem(rows=1000, seed=seed)) for seed in (0, 1))
    scheduler = fit_scheduler(request.param, *problem)
    assert not scheduler.combiner.empty
    return Fitted(scheduler, *(answered(scheduler, rows) for rows in (problem, fresh)))


def answered(scheduler: Scheduler, rows: CalibrationSet) -> CalibrationSet:
    return rows._replace(log_probs=scheduler.combiner.combine_all(rows.log_probs))


def exits_of(scheduler: Scheduler, problem: CalibrationSet, parameter: float) -> NDArray[np.intp]:
    return exits_taken(scheduler.policy, replay(scheduler.policy, problem.log_probs), parameter)


def accuracy(problem: CalibrationSet, exits: NDArray[np.intp]) -> float:
    answers = problem.log_probs.argmax(-1)[exits, np.arange(len(exits))]
    return float((answers == problem.labels).mean())


# The frontier of every policy


def test_frontier_has_many_points_of_rising_cost_and_monotone_parameter(fitted: Fitted) -> None:
    frontier = fitted.scheduler.frontier
    assert len(frontier) >= 24
    assert (np.diff(frontier.expected_costs_ms) > 0).all()
    towards_dearer = -1 if fitted.scheduler.policy.kind == "stopping" else 1
    assert (towards_dearer * np.diff(frontier.parameters) > 0).all()


def test_frontier_spans_all_at_the_first_exit_to_all_at_the_last(fitted: Fitted) -> None:
    frontier, costs = fitted.scheduler.frontier, fitted.problem.costs_ms
    assert frontier[0].exit_rates.tolist() == [1, 0, 0]
    assert frontier[-1].exit_rates.tolist() == [0, 0, 1]
    assert frontier[-1].expected_cost_ms == pytest.approx(costs[-1])
    assert frontier[-1].parameter == fitted.scheduler.policy.never_exit_parameter
    assert frontier.exit_rates.sum(1) == pytest.approx(np.ones(len(frontier)))
    assert (frontier.exit_rates >= 0).all()


def test_frontier_has_points_near_every_budget(fitted: Fitted) -> None:
    frontier = fitted.scheduler.frontier
    # Optimised thresholds may leave budgets unspent that accuracy does not profit from.
    if not fitted.scheduler.policy.kind.endswith("-opt"):
        for budget in BUDGETS[1:]:
            assert frontier.at_cost(budget).expected_cost_ms >= 0.98 * budget


def test_every_budget_is_kept_on_the_calibration_rows(fitted: Fitted) -> None:
    scheduler, problem, _ = fitted
    for budget in BUDGETS:
        exits = exits_of(scheduler, problem, scheduler.frontier.at_cost(budget).parameter)
        assert problem.costs_ms[exits].mean() <= budget * (1 + 1e-8)


def test_every_budget_is_nearly_kept_on_fresh_rows(fitted: Fitted) -> None:
    scheduler, problem, fresh = fitted
    for budget in BUDGETS:
        exits = exits_of(scheduler, fresh, scheduler.frontier.at_cost(budget).parameter)
        assert problem.costs_ms[exits].mean() <= 1.01 * budget


def test_points_show_the_cost_of_the_calibration_rows_or_a_higher_one(fitted: Fitted) -> None:
    scheduler, problem, _ = fitted
    replayed, shown = replay(scheduler.policy, problem.log_probs), scheduler.frontier
    realised = [
        problem.costs_ms[exits_taken(scheduler.policy, replayed, parameter)].mean()
        for parameter in shown.parameters
    ]
    assert (shown.expected_costs_ms >= np.array(realised) - 1e-9).all()
    # The rows that it was not fitted to cost more at some of the budgets.
    assert (shown.expected_costs_ms > np.array(realised) + 1e-6).any()


def test_expected_accuracy_is_that_on_fresh_rows(fitted: Fitted) -> None:
    scheduler, _, fresh = fitted
    for budget in BUDGETS:
        point = scheduler.frontier.at_cost(budget)
        realised = accuracy(fresh, exits_of(scheduler, fresh, point.parameter))
        assert point.expected_accuracy == pytest.approx(realised, abs=0.05)


@pytest.mark.parametrize("costs", [(1.0, 1.25, 1.3), (0.5, 3.0, 9.0)])
def test_other_costs_index_the_same_exits_anew(fitted: Fitted, costs: tuple[float, ...]) -> None:
    scheduler, problem, _ = fitted
    costs_ms, before = np.array(costs), scheduler.frontier
    moved, replayed = before.with_costs(costs_ms), replay(scheduler.policy, problem.log_probs)
    told = dict(zip(before.parameters, before.expected_accuracy, strict=True))
    same = 0
    for index in range(len(moved)):
        point = moved[index]
        exits = exits_taken(scheduler.policy, replayed, point.parameter)
        rates = np.bincount(exits, minlength=3) / len(exits)
        assert point.expected_accuracy == told[point.parameter]
        if np.allclose(rates, point.exit_rates):
            same += 1
            assert costs_ms[exits].mean() == pytest.approx(point.expected_cost_ms)
        else:  # rows that the policy was not fitted to cost more
            assert problem.costs_ms @ rates <= problem.costs_ms @ point.exit_rates + 1e-9
    assert same > len(moved) / 10


@pytest.mark.parametrize(
    "kind",
    [pytest.param("eenet", marks=pytest.mark.slow), "maxprob", "entropy", "patience"],
)
def test_budgets_without_ties_are_spent_between_grid_points_too(
    kind: str, make_problem: Callable[..., Made]
) -> None:
    # The others may leave a budget unspent that accuracy does not profit from.
    problem = CalibrationSet(*make_problem(rows=1000))
    own = FittedCombiner(OWN_OUTPUTS, problem.log_probs)
    scheduler = fit_scheduler(kind, *problem, combined=own)
    for budget in np.random.default_rng(0).uniform(1.0, 1.3, 20):
        spent = problem.costs_ms[exits_of(scheduler, problem, budget)].mean()
        assert 0.99 * budget <= spent <= budget


def test_same_seed_gives_the_same_frontier_and_another_other_folds(
    make_problem: Callable[..., Made],
) -> None:
    once, again, other = (
        fit_scheduler("stopping", *make_problem(rows=200), seed=seed).frontier for seed in (3, 3, 4)
    )
    assert np.array_equal(once.expected_accuracy, again.expected_accuracy)
    assert np.array_equal(once.exit_rates, again.exit_rates)
    assert not np.array_equal(once.expected_accuracy, other.expected_accuracy)


# Cross-fitting


def pure_noise(rows: int = 60, classes: int = 20, seed: int = 0) -> CalibrationSet:
    """Which exit is right is drawn by lot: what a fit finds in it is not there."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(3, rows, classes))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    right = rng.integers(0, 3, rows)
    labels = log_probs.argmax(-1)[right, np.arange(rows)]
    return CalibrationSet(log_probs, labels, np.array([1.0, 1.1, 1.3]))


@pytest.mark.parametrize("kind", ["stopping", "eenet", "maxprob-opt"])
def test_the_accuracy_expected_is_not_that_of_the_rows_fitted_to(kind: str) -> None:
    told, seen = [], []
    for seed in range(1 if kind == "eenet" else 2):
        problem = pure_noise(seed=seed)
        scheduler = fit_scheduler(kind, *problem)
        told.append(scheduler.frontier.expected_accuracy.mean())
        points = scheduler.frontier.parameters
        replayed = replay(scheduler.policy, problem.log_probs)
        seen += [
            np.mean(
                [accuracy(problem, exits_taken(scheduler.policy, replayed, at)) for at in points]
            )
        ]
    assert np.mean(told) < np.mean(seen) - 0.03


@pytest.mark.parametrize("kind", ["stopping", "maxprob-opt"])
def test_the_ends_of_the_frontier_are_right_as_often_as_the_end_exits(kind: str) -> None:
    """Of few rows too, where the fits of the folds would let rows go at quite other prices."""
    for seed in range(3):
        problem = pure_noise(rows=20, seed=seed)
        frontier = fit_scheduler(kind, *problem).frontier
        right = (problem.log_probs.argmax(-1) == problem.labels).mean(1)
        assert frontier.expected_accuracy[[0, -1]] == pytest.approx(right[[0, -1]])


@pytest.mark.parametrize(("large", "fits"), [(False, [40] + [32] * 5), (True, [40, 26, 27, 27])])
def test_each_row_is_left_out_once_by_fewer_folds_if_there_are_very_many(
    make_problem: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, large: bool, fits: list[int]
) -> None:
    log_probs, labels, costs = make_problem(rows=40)
    monkeypatch.setattr("scheduler.frontier.GRID_STEP", 0.1)
    fitted_to = []

    def recording(log_probs: Array, costs_ms: Array, weights: None) -> ThresholdPolicy:
        fitted_to.append(log_probs[0, :, 0])
        return fit_patience(log_probs, costs_ms, weights)

    fit_patience = scheduler.fitting.thresholds.fit_patience
    monkeypatch.setattr(scheduler.fitting.thresholds, "fit_patience", recording)
    if large:
        monkeypatch.setattr(scheduler.fitting.fit, "LARGE_SET", log_probs.size)
    fit_scheduler("patience", log_probs, labels, costs)
    assert sorted(len(rows) for rows in fitted_to) == sorted(fits)
    left_out = [np.setdiff1d(log_probs[0, :, 0], rows) for rows in fitted_to[1:]]
    assert np.array_equal(np.sort(np.concatenate(left_out)), np.sort(log_probs[0, :, 0]))


# Published weights


def test_published_weights_get_thresholds_and_keep_their_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scheduler.frontier.GRID_STEP", 0.03)
    with np.load(PUBLISHED) as arrays:
        log_probs, labels = finite_log_probs(arrays["probs"]), arrays["labels"].astype(np.int64)
        costs = arrays["costs"]
    published = load_published_scheduler(PUBLISHED)
    scheduler = fit_scheduler("eenet", log_probs, labels, costs, published=published)
    assert np.array_equal(score_all(scheduler.policy, log_probs), score_all(published, log_probs))
    for budget in np.linspace(costs[0], costs[-1], 6):
        exits = exits_of(scheduler, CalibrationSet(log_probs, labels, costs), budget)
        assert costs[exits].mean() <= budget * (1 + 1e-12)
        assert scheduler.frontier.at_cost(budget).expected_cost_ms <= budget * (1 + 1e-8)


def test_published_weights_are_a_policy_eenet_and_no_other(
    make_problem: Callable[..., Made],
) -> None:
    published = load_published_scheduler(PUBLISHED)
    with pytest.raises(ValueError, match="weights belong to the policy 'eenet', not to 'maxprob'"):
        fit_scheduler("maxprob", *make_problem(rows=20), published=published)


def test_published_weights_of_other_classes_are_refused(make_problem: Callable[..., Made]) -> None:
    published = load_published_scheduler(PUBLISHED)
    with pytest.raises(ValueError, match="3 exits and 10 classes"):
        fit_scheduler("eenet", *make_problem(rows=20), published=published)


# Arrays that do not fit together


def test_an_unknown_policy_is_refused_with_those_there_are(
    make_problem: Callable[..., Made],
) -> None:
    with pytest.raises(ValueError, match=r"policy 'oracle' is unknown; give one of stopping, .*"):
        fit_scheduler("oracle", *make_problem(rows=20))


def test_costs_may_be_a_list(make_problem: Callable[..., Made]) -> None:
    log_probs, labels, _ = make_problem(rows=20)
    assert fit_scheduler("stopping", log_probs, labels, [1, 2, 3]).policy.num_exits == 3  # type: ignore[arg-type]


def test_rows_of_a_problem_are_chosen_in_all_its_arrays(make_problem: Callable[..., Made]) -> None:
    problem = CalibrationSet(*make_problem(rows=20))
    chosen = problem.labels == 1
    part = problem.rows(chosen)
    assert np.array_equal(part.log_probs, problem.log_probs[:, chosen])
    assert part.labels.tolist() == [1] * int(chosen.sum())
    assert np.array_equal(part.costs_ms, problem.costs_ms)


def with_value(array: NDArray[Any], place: Any, value: float) -> NDArray[Any]:
    changed = array.copy()
    changed[place] = value
    return changed


BREAKS: dict[str, tuple[Callable[[CalibrationSet], CalibrationSet], str]] = {
    "no exits axis": (
        lambda p: p._replace(log_probs=p.log_probs[0]),
        r"predictions have the shape \(30, 5\); give \(K, N, C\)",
    ),
    "no exit": (
        lambda p: p._replace(log_probs=p.log_probs[:0]),
        r"predictions have the shape \(0, 30, 5\).*at least one exit",
    ),
    "probabilities, not logarithms": (
        lambda p: p._replace(log_probs=np.exp(p.log_probs)),
        r"prediction of exit 0 for row 0 is no logarithm of probabilities",
    ),
    "one class": (
        lambda p: p._replace(log_probs=p.log_probs[:, :, :1]),
        r"predictions have the shape \(3, 30, 1\).*two classes",
    ),
    "a label too few": (
        lambda p: p._replace(labels=p.labels[1:]),
        r"labels have the shape \(29,\).*one label for each of the 30 rows",
    ),
    "labels in two axes": (
        lambda p: p._replace(labels=p.labels[:, None]),
        r"labels have the shape \(30, 1\)",
    ),
    "too few rows": (
        lambda p: p.rows(np.arange(30) < 9),
        "there are 9 calibration rows; give at least 10",
    ),
    "a label beyond the classes": (
        lambda p: p._replace(labels=with_value(p.labels, 7, 5)),
        "label 5 at row 7 is outside the classes 0 to 4",
    ),
    "a negative label": (
        lambda p: p._replace(labels=with_value(p.labels, 12, -1)),
        "label -1 at row 12 is outside the classes 0 to 4",
    ),
    "NaN": (
        lambda p: p._replace(log_probs=with_value(p.log_probs, (2, 17, 3), np.nan)),
        "prediction of exit 2 for row 17 is no logarithm",
    ),
    "minus infinity": (
        lambda p: p._replace(log_probs=with_value(p.log_probs, (1, 4, 0), -np.inf)),
        "prediction of exit 1 for row 4 is no logarithm",
    ),
    "a cost too few": (
        lambda p: p._replace(costs_ms=p.costs_ms[:2]),
        "there are 2 costs for 3 exits",
    ),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_a_problem_that_does_not_fit_together_is_named(
    make_problem: Callable[..., Made], broken: str
) -> None:
    change, sentence = BREAKS[broken]
    problem = change(CalibrationSet(*make_problem(rows=30)))
    with pytest.raises(ValueError, match=sentence):
        check_calibration(problem)
    with pytest.raises(ValueError, match=sentence):
        fit_scheduler("maxprob", *problem)


PIXEL_BREAKS: dict[str, tuple[Callable[[CalibrationSet], CalibrationSet], str]] = {
    "one label a row": (
        lambda p: p._replace(labels=p.labels[:, 0]),
        r"labels have the shape \(30,\).*for each of the 30 rows and each of their 6 pixels",
    ),
    "a label beyond the classes": (
        lambda p: p._replace(labels=with_value(p.labels, (7, 2), 5)),
        "label 5 at row 7 is outside the classes 0 to 4",
    ),
    "NaN": (
        lambda p: p._replace(log_probs=with_value(p.log_probs, (2, 17, 4, 3), np.nan)),
        "prediction of exit 2 for row 17 is no logarithm",
    ),
    "no pixels": (
        lambda p: p._replace(log_probs=p.log_probs[:, :, :0], labels=p.labels[:, :0]),
        r"predictions have the shape \(3, 30, 0, 5\); give .* for a segmentation \(K, N, P, C\)",
    ),
    "an axis more": (
        lambda p: p._replace(log_probs=p.log_probs[..., None, :]),
        r"predictions have the shape \(3, 30, 6, 1, 5\); give",
    ),
    "too few rows": (
        lambda p: p.rows(np.arange(30) < 9),
        "there are 9 calibration rows; give at least 10",
    ),
}


@pytest.mark.parametrize("broken", PIXEL_BREAKS)
def test_a_problem_of_pixels_that_does_not_fit_together_is_named(
    make_problem: Callable[..., Made], broken: str
) -> None:
    change, sentence = PIXEL_BREAKS[broken]
    log_probs, labels, costs = make_problem(rows=180)
    pixels = CalibrationSet(log_probs.reshape(3, 30, 6, 5), labels.reshape(30, 6), costs)
    check_calibration(pixels)
    with pytest.raises(ValueError, match=sentence):
        check_calibration(change(pixels))


def test_the_smallest_problem_passes(make_problem: Callable[..., Made]) -> None:
    check_calibration(CalibrationSet(*make_problem(rows=10, classes=2)))


@pytest.mark.parametrize(
    ("costs", "sentence"),
    [
        ([1.0, 2.0, 3.0, 4.0], "there are 4 costs for 3 exits"),
        ([[1.0, 2.0, 3.0]], "there are 3 costs for 3 exits; give one for each exit"),
        ([1.0, np.nan, 3.0], r"the costs \[1\.0, nan, 3\.0\] are not all finite and above 0"),
        ([1.0, 2.0, np.inf], "are not all finite and above 0"),
        ([0.0, 1.0, 2.0], r"the costs \[0\.0, 1\.0, 2\.0\] are not all finite and above 0"),
        ([-1.0, 1.0, 2.0], "are not all finite and above 0"),
        ([1.0, 2.0, 2.0], "cost 2 is 2, no more than cost 1, 2"),
        ([1.5, 1.25, 2.0], r"cost 1 is 1\.25, no more than cost 0, 1\.5"),
    ],
)
def test_costs_that_are_none_are_named(costs: list[Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_costs(np.array(costs), 3)


def test_rising_costs_pass() -> None:
    check_costs(np.array([0.001, 0.002, 4.0]), 3)


def test_a_network_with_one_exit_has_nothing_to_decide(make_problem: Callable[..., Made]) -> None:
    log_probs, labels, _ = make_problem(rows=30)
    policy, frontier, _ = fit_scheduler("stopping", log_probs[:1], labels, np.array([2.0]))
    scored = replay(policy, log_probs[:1])
    assert policy.decide(0, scored[0], np.array([policy.never_exit_parameter])).leave.all()
    assert (len(frontier), frontier[0].expected_cost_ms) == (1, 2.0)
    right = (log_probs[0].argmax(-1) == labels).mean()
    assert frontier[0].expected_accuracy == pytest.approx(right)


def test_without_labels_a_policy_is_fitted_to_the_last_exit(
    make_problem: Callable[..., Any],
) -> None:
    log_probs, _, costs_ms = make_problem(rows=300)
    answers = log_probs[-1].argmax(-1)
    found = fit_scheduler("maxprob", log_probs, None, costs_ms)
    expected = fit_scheduler("maxprob", log_probs, answers, costs_ms)
    assert (found.frontier.reference, expected.frontier.reference) == ("last_exit", "labels")
    assert np.array_equal(found.frontier.expected_accuracy, expected.frontier.expected_accuracy)
    assert np.array_equal(found.frontier.exit_rates, expected.frontier.exit_rates)
    assert found.frontier.expected_accuracy[-1] == 1
    with pytest.raises(ValueError, match=r"the predictions have the shape \(0, 20, 3\)"):
        fit_scheduler("maxprob", np.empty((0, 20, 3)), None, costs_ms)
