import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

import scheduler.fitting.eenet
from profiling.calibration import Predictions, Recorded, load_predictions
from profiling.evaluation.evaluate import (
    EVALUATED,
    Comparison,
    Evaluation,
    check_budgets,
    compare,
    evaluate,
    oracle_exits,
    ranking_quality,
    spread_budgets,
)
from scheduler.baselines import ConfidencePolicy, PatiencePolicy
from scheduler.eenet import EENetPolicy
from scheduler.fitted import Scheduler
from scheduler.fitting.fit import fit_scheduler
from scheduler.frontier import Frontier
from scheduler.policies import POLICIES
from scheduler.policy import exits_taken, replay, score_all
from scheduler.thresholds import ThresholdTable

pytestmark = pytest.mark.usefixtures("quick_fits")

MakeProbs = Callable[..., tuple[NDArray[np.float64], NDArray[np.int64]]]
COSTS = np.array([1.0, 2.0, 3.3])
BUDGETS = [1.25, 1.9, 2.9]


def sure(rows: Sequence[Sequence[float]], labels: Sequence[int]) -> Predictions:
    """Predictions of two classes from the probability of class 1 at each exit, (K, N)."""
    of_1 = np.array(rows)
    return Predictions(np.log(np.stack([1 - of_1, of_1], -1)), np.array(labels))


def by_hand() -> tuple[Scheduler, Recorded]:
    """Two exits at 1 and 3 ms; at parameter 2 the rows that are 0.8 sure leave at the first."""
    parameters = np.array([1.0, 2.0, 3.0])
    thresholds = np.array([[-np.inf, -np.inf], [0.8, -np.inf], [np.inf, -np.inf]])
    rates = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    frontier = Frontier(parameters, rates, np.array([0.5, 0.8, 0.9]), np.array([1.0, 3.0]))
    policy = ConfidencePolicy(ThresholdTable(parameters, thresholds), "maxprob")
    calibration = sure([[0.9, 0.6, 0.6, 0.6], [0.9, 0.9, 0.9, 0.1]], [1, 1, 1, 1])
    test = sure([[0.9, 0.85, 0.7, 0.3], [0.6, 0.2, 0.1, 0.9]], [1, 0, 0, 1])
    return Scheduler(policy, frontier), Recorded(calibration, None, test)


def figures(result: Evaluation) -> tuple[float, float, list[float]]:
    return result.test_cost, result.test_accuracy, result.exit_rates


@pytest.mark.parametrize(
    ("budget", "cost", "accuracy", "rates"),
    [
        (0.5, 1.0, 0.25, [1.0, 0.0]),
        (1.0, 1.0, 0.25, [1.0, 0.0]),
        (1.9, 1.0, 0.25, [1.0, 0.0]),
        (2.5, 2.0, 0.75, [0.5, 0.5]),
        (3.0, 3.0, 1.0, [0.0, 1.0]),
        (9.0, 3.0, 1.0, [0.0, 1.0]),
    ],
)
def test_figures_are_those_worked_out_by_hand(
    budget: float, cost: float, accuracy: float, rates: list[float]
) -> None:
    (result,) = evaluate(*by_hand(), [budget])
    assert (result.policy, result.budget, result.fit_seconds) == ("maxprob", budget, 0.0)
    assert figures(result) == (cost, accuracy, rates)


@pytest.mark.parametrize(
    ("budget", "cost", "accuracy", "feasible"),
    [
        (0.5, 1.0, 1.0, False),
        (2.4, 2.5, 0.75, False),
        (2.5, 2.5, 0.75, True),
        (3.0, 3.0, 0.75, True),
    ],
)
def test_a_budget_is_feasible_where_the_calibration_set_keeps_it(
    budget: float, cost: float, accuracy: float, feasible: bool
) -> None:
    (result,) = evaluate(*by_hand(), [budget])
    assert (result.calibration_cost, result.calibration_accuracy) == (cost, accuracy)
    assert result.feasible is feasible


def test_budgets_are_answered_in_their_order() -> None:
    results = evaluate(*by_hand(), [3.0, 1.0, 2.0])
    assert [(result.budget, result.test_cost) for result in results] == [(3, 3), (1, 1), (2, 2)]


def test_costs_of_another_host_are_the_ones_counted() -> None:
    scheduler, recorded = by_hand()
    moved = scheduler._replace(frontier=scheduler.frontier.with_costs(np.array([2.0, 10.0])))
    results = evaluate(moved, recorded, [5.0, 6.0])
    assert [result.test_cost for result in results] == [2.0, 6.0]


@pytest.mark.parametrize("copies", [25, 400, 6400])
def test_the_interval_is_that_of_a_share_of_so_many_rows(copies: int) -> None:
    scheduler, (calibration, _, test) = by_hand()
    many = Predictions(np.repeat(test.log_probs, copies, axis=1), np.repeat(test.labels, copies))
    (result,) = evaluate(scheduler, Recorded(calibration, None, many), [2.5])
    low, high = result.test_accuracy_ci95
    half = 1.96 * np.sqrt(0.75 * 0.25 / (4 * copies))
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.2 * half)


def test_the_interval_is_the_same_in_every_run_of_a_seed() -> None:
    first, second = (evaluate(*by_hand(), [2.0], seed=7) for _ in range(2))
    assert first == second


def of_pixels(rows: int, seed: int) -> Predictions:
    """Rows of 25 pixels that are as easy as one another, more or less; 3 exits, 4 classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (rows, 25))
    easiness = rng.uniform(0, 1, (rows, 1, 1)) * rng.uniform(0.5, 1.5, (rows, 25, 1))
    logits = rng.normal(size=(3, rows, 25, 4))
    for k, strength in enumerate((3, 5, 8)):
        logits[k] += strength * easiness * np.eye(4)[labels]
    return Predictions(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), labels)


def test_the_interval_of_masks_is_that_of_resampled_rows() -> None:
    """Not of resampled pixels, of which a row's are right or wrong together."""
    test = of_pixels(400, seed=3)
    fitted = unlearned("maxprob", 3)
    (result,) = evaluate(fitted, Recorded(test, None, test), [3.0])
    right = test.correct[:, -1]
    assert result.test_accuracy == pytest.approx(right.mean())
    half = 1.96 * right.std() / np.sqrt(400)
    expected = (right.mean() - half, right.mean() + half)
    assert result.test_accuracy_ci95 == pytest.approx(expected, abs=0.2 * half)


@pytest.mark.slow
def test_policies_are_compared_on_masks() -> None:
    recorded = Recorded(of_pixels(150, seed=0), None, of_pixels(200, seed=1))
    found = compare(recorded, COSTS, budgets=BUDGETS)
    right, rows = recorded.test.correct, np.arange(200)
    assert found.exit_accuracy == pytest.approx(right.mean(0).tolist())
    best = {j.evaluation.budget: j for j in found.scored if j.evaluation.policy == "oracle"}
    for result, exits, _ in found.scored:
        assert result.feasible
        assert result.test_accuracy == pytest.approx(right[rows, exits].mean())
        low, high = result.test_accuracy_ci95
        assert low < result.test_accuracy < high
        oracle = best[result.budget].evaluation
        if result.test_cost <= oracle.test_cost:
            assert result.test_accuracy <= oracle.test_accuracy
    assert set(found.auroc) == set(POLICIES)
    for quality in found.auroc.values():
        assert all(value is not None and value > 0.5 for value in quality)
    json.dumps(found.to_json(), allow_nan=False)


def test_spread_budgets_lie_evenly_inside_the_costs() -> None:
    assert spread_budgets(np.array([1.0, 2.0, 5.0]), 3) == [2.0, 3.0, 4.0]
    budgets = spread_budgets(np.array([1.0, 2.0]))
    assert len(budgets) == 7 and budgets[0] > 1 and budgets[-1] < 2


@pytest.fixture(scope="module")
def recorded(make_probs: MakeProbs) -> Recorded:
    """200 calibration and 150 test rows, 3 exits, 4 classes."""
    (seen, seen_labels), (unseen, unseen_labels) = make_probs(200), make_probs(150, seed=1)
    return Recorded(
        Predictions(np.log(seen), seen_labels),
        None,
        Predictions(np.log(unseen), unseen_labels),
    )


@pytest.fixture(scope="module")
def comparison(recorded: Recorded) -> Comparison:
    """All there is to compare."""
    return compare(recorded, COSTS, budgets=BUDGETS)


def exits_of(comparison: Comparison) -> dict[tuple[str, float], list[int]]:
    return {
        (judged.evaluation.policy, judged.evaluation.budget): judged.exits.tolist()
        for judged in comparison.scored
    }


def test_there_is_one_result_for_every_policy_and_budget(comparison: Comparison) -> None:
    assert EVALUATED == (*POLICIES, "eenet-per-budget", "oracle")
    assert list(exits_of(comparison)) == list(itertools.product(EVALUATED, BUDGETS))
    assert len(comparison.scored) == len(EVALUATED) * len(BUDGETS)


def test_the_document_is_that_of_the_contract(comparison: Comparison) -> None:
    document = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert set(document) == {"costs", "num_exits", "exit_accuracy", "results", "auroc"}
    assert (document["costs"], document["num_exits"]) == ([1.0, 2.0, 3.3], 3)
    for result in document["results"]:
        assert list(result) == [
            "policy",
            "budget",
            "feasible",
            "calibration_cost",
            "calibration_accuracy",
            "test_cost",
            "test_accuracy",
            "test_accuracy_ci95",
            "exit_rates",
            "fit_seconds",
        ]
        assert len(result["exit_rates"]) == 3 and len(result["test_accuracy_ci95"]) == 2


def test_every_figure_is_that_of_the_exits_taken(
    comparison: Comparison, recorded: Recorded
) -> None:
    test, rows = recorded.test, np.arange(150)
    assert comparison.exit_accuracy == pytest.approx(
        [(test.log_probs[k].argmax(1) == test.labels).mean() for k in range(3)]
    )
    for result, exits, answers in comparison.scored:
        scheduler = comparison.schedulers.get(result.policy)
        combiner = comparison.combiner if scheduler is None else scheduler.combiner
        served = test.combined(combiner).log_probs
        assert answers.tolist() == served[exits, rows].argmax(1).tolist()
        assert result.test_cost == pytest.approx(COSTS[exits].mean())
        assert result.test_accuracy == pytest.approx((answers == test.labels).mean())
        assert result.exit_rates == pytest.approx([(exits == k).mean() for k in range(3)])
        low, high = result.test_accuracy_ci95
        assert low <= result.test_accuracy <= high


def test_every_policy_keeps_every_budget_on_the_calibration_set(comparison: Comparison) -> None:
    for result, *_ in comparison.scored:
        assert result.feasible and result.calibration_cost <= result.budget * (1 + 1e-9)
        assert result.calibration_cost >= 1


def test_budgets_at_both_ends_of_the_costs_are_kept(recorded: Recorded) -> None:
    at_ends = compare(
        recorded, COSTS, budgets=[1.0, 3.3], policies=["maxprob", "stopping", "eenet-per-budget"]
    )
    for result, *_ in at_ends.scored:
        assert result.feasible
        assert result.budget == 3.3 or result.test_cost == 1.0


def test_no_exit_depends_on_a_test_label(recorded: Recorded, comparison: Comparison) -> None:
    test = recorded.test
    labels = np.random.default_rng(3).permutation(test.labels)
    assert (labels != test.labels).any()
    permuted = compare(
        Recorded(recorded.calibration, None, test._replace(labels=labels)), COSTS, budgets=BUDGETS
    )
    before, after = exits_of(comparison), exits_of(permuted)
    for policy, budget in before:
        if policy != "oracle":
            assert after[policy, budget] == before[policy, budget], (policy, budget)


@pytest.mark.slow
def test_no_exit_depends_on_the_other_test_rows(recorded: Recorded, comparison: Comparison) -> None:
    test = recorded.test
    half = Predictions(test.log_probs[:, :70], test.labels[:70])
    alone = compare(
        Recorded(recorded.calibration, None, half), COSTS, budgets=BUDGETS, policies=POLICIES
    )
    whole = exits_of(comparison)
    for asked, exits in exits_of(alone).items():
        assert exits == whole[asked][:70], asked


def test_the_oracle_keeps_the_budget_and_none_that_keeps_it_is_right_more_often(
    comparison: Comparison,
) -> None:
    results = [result for result, *_ in comparison.scored]
    oracles = {result.budget: result for result in results if result.policy == "oracle"}
    assert list(oracles) == BUDGETS
    for budget, oracle in oracles.items():
        assert max(oracle.calibration_cost, oracle.test_cost) <= budget
    for result in results:
        oracle = oracles[result.budget]
        assert result.calibration_accuracy <= oracle.calibration_accuracy
        if result.test_cost <= result.budget:
            assert result.test_accuracy <= oracle.test_accuracy


@settings(max_examples=60, deadline=None)
@given(
    correct=st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=5),
    sixteenths=st.integers(16, 64),
)
def test_no_exits_at_all_beat_the_oracle(correct: list[tuple[bool, ...]], sixteenths: int) -> None:
    right, rows, costs = np.array(correct), np.arange(len(correct)), np.array([1.0, 2.0, 4.0])
    taken = oracle_exits(right, costs, sixteenths / 16)
    affordable = [
        right[rows, list(exits)].sum()
        for exits in itertools.product(range(3), repeat=len(correct))
        if costs[list(exits)].sum() <= len(correct) * sixteenths / 16
    ]
    assert costs[taken].sum() <= len(correct) * sixteenths / 16
    assert right[rows, taken].sum() == max(affordable)


@settings(max_examples=60, deadline=None)
@given(
    eighths=st.lists(st.tuples(*[st.integers(0, 8)] * 3), min_size=1, max_size=5),
    sixteenths=st.integers(16, 64),
)
def test_of_masks_no_exits_beat_the_oracle_by_as_much_as_a_row(
    eighths: list[tuple[int, ...]], sixteenths: int
) -> None:
    right, rows, costs = np.array(eighths) / 8, np.arange(len(eighths)), np.array([1.0, 2.0, 4.0])
    taken = oracle_exits(right, costs, sixteenths / 16)
    affordable = [
        right[rows, list(exits)].sum()
        for exits in itertools.product(range(3), repeat=len(eighths))
        if costs[list(exits)].sum() <= len(eighths) * sixteenths / 16
    ]
    assert costs[taken].sum() <= len(eighths) * sixteenths / 16
    assert max(affordable) - 1 < right[rows, taken].sum() <= max(affordable)


def test_the_oracle_goes_on_where_most_pixels_are_won_for_the_cost() -> None:
    right = np.array([[0.5, 0.6, 0.9], [0.5, 0.9, 0.95], [0.5, 0.5, 0.5]])
    costs = np.array([1.0, 2.0, 4.0])
    # 0.4 right for a ms, then 0.4 for three, then the rest of the second row, 0.05 for two.
    taken = {spend: oracle_exits(right, costs, spend / 3).tolist() for spend in (3, 4, 7, 9)}
    assert taken == {3: [0, 0, 0], 4: [0, 1, 0], 7: [2, 1, 0], 9: [2, 2, 0]}


@pytest.mark.parametrize("rows", [1, 24, 25, 100, 1000])
@pytest.mark.parametrize("costs", [[1.0, 1.1], [0.8627, 2.2134]])
def test_the_oracle_can_spend_the_cost_of_the_last_exit_on_everyone(
    rows: int, costs: list[float]
) -> None:
    right_in_the_end = np.tile([False, True], (rows, 1))
    assert oracle_exits(right_in_the_end, np.array(costs), costs[-1]).tolist() == [1] * rows


def test_what_the_oracle_cannot_mend_leaves_at_once() -> None:
    never, only_first, only_last = [False] * 3, [True, False, False], [False, False, True]
    assert oracle_exits(np.array([never, only_first, only_last]), COSTS, 3.3).tolist() == [0, 0, 2]


def test_a_fitted_scheduler_is_judged_as_it_is(
    make_probs: MakeProbs, recorded: Recorded, comparison: Comparison
) -> None:
    probs, labels = make_probs(60, seed=9)
    fitted = fit_scheduler("maxprob", np.log(probs), labels, COSTS)
    found = compare(
        recorded, COSTS, budgets=BUDGETS, policies=["entropy", "maxprob"], fitted=fitted
    )
    assert found.schedulers["maxprob"] is fitted
    results = [judged.evaluation for judged in found.scored]
    assert results[3:] == evaluate(fitted, recorded, BUDGETS)
    new, own = exits_of(comparison), exits_of(found)
    for budget in BUDGETS:  # the other policy is fitted to the calibration set as ever
        assert own["entropy", budget] == new["entropy", budget]
    assert any(own["maxprob", budget] != new["maxprob", budget] for budget in BUDGETS)
    assert results[0].fit_seconds > 0


def test_eenet_per_budget_is_fitted_for_each_budget_alone(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, asked, made = scheduler.fitting.eenet.fit_eenet, [], []

    def watched(*args: object, budgets_ms: NDArray[np.float64], seed: int) -> EENetPolicy:
        asked.append((budgets_ms.tolist(), seed))
        made.append(fit(*args, budgets_ms=budgets_ms, seed=seed))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(scheduler.fitting.eenet, "fit_eenet", watched)
    found = compare(recorded, COSTS, budgets=BUDGETS, policies=["eenet-per-budget"], seed=5)
    assert asked == [([budget], 5) for budget in BUDGETS]
    assert found.schedulers == {} and found.auroc == {}
    for policy, (result, exits, _) in zip(made, found.scored, strict=True):
        replayed = replay(policy, recorded.test.combined(found.combiner).log_probs)
        assert exits.tolist() == exits_taken(policy, replayed, result.budget).tolist()
        assert result.fit_seconds > 0


def test_a_seed_makes_every_run_the_same(recorded: Recorded, comparison: Comparison) -> None:
    again = compare(recorded, COSTS, budgets=BUDGETS, policies=["stopping", "eenet", "oracle"])
    first = {(j.evaluation.policy, j.evaluation.budget): j for j in comparison.scored}
    for result, exits, _ in again.scored:
        before = first[result.policy, result.budget]
        assert result._replace(fit_seconds=0) == before.evaluation._replace(fit_seconds=0)
        assert np.array_equal(exits, before.exits)


def test_rows_that_are_brought_to_a_sum_of_1_are_judged_like_exact_ones(
    tmp_path: Path, make_probs: MakeProbs
) -> None:
    (seen, seen_labels), (unseen, unseen_labels) = make_probs(200), make_probs(150, seed=1)
    found = []
    for total in (1.0, 1 - 2**-8, 1 + 2**-8):
        np.savez(
            tmp_path / "mine.npz",
            calibration_probs=seen * total,
            calibration_labels=seen_labels,
            test_probs=unseen * total,
            test_labels=unseen_labels,
        )
        read = load_predictions(tmp_path / "mine.npz")
        found.append(compare(read, COSTS, budgets=BUDGETS, policies=["maxprob", "stopping"]))
    assert exits_of(found[0]) == exits_of(found[1]) == exits_of(found[2])


def unlearned(kind: str, exits: int) -> Scheduler:
    """A policy whose scores alone count."""
    table, costs = ThresholdTable.closed(exits), np.arange(1.0, exits + 1)
    frontier = Frontier(np.zeros(1), np.eye(exits)[-1:], np.ones(1), costs)
    policy = PatiencePolicy(table) if kind == "patience" else ConfidencePolicy(table, kind)
    return Scheduler(policy, frontier)


@pytest.mark.parametrize("kind", ["maxprob", "entropy", "patience"])
@pytest.mark.parametrize("digits", [1, 2, 16])
def test_the_auroc_is_scikit_learns_with_ties_and_without(
    make_probs: MakeProbs, kind: str, digits: int
) -> None:
    probs, labels = make_probs(300, seed=2)
    coarse = probs.round(digits) + 1e-3
    test = Predictions(np.log(coarse / coarse.sum(-1, keepdims=True)), labels)
    scheduler = unlearned(kind, 3)
    scores = score_all(scheduler.policy, test.log_probs)
    assert digits > 1 or len(np.unique(scores[:, 0])) < 150  # there are ties
    expected = [roc_auc_score(test.correct[:, k], scores[:, k]) for k in range(3)]
    assert ranking_quality(scheduler, test) == pytest.approx(expected)


def test_the_auroc_of_masks_is_that_of_their_pixels() -> None:
    """Every pixel with the score of its row, as a weight for each share has it."""
    test, scheduler = of_pixels(80, seed=2), unlearned("maxprob", 3)
    scores = score_all(scheduler.policy, test.log_probs)
    right = test.log_probs.argmax(-1) == test.labels  # (K, N, P)
    expected = [roc_auc_score(right[k].ravel(), scores[:, k].repeat(25)) for k in range(3)]
    assert ranking_quality(scheduler, test) == pytest.approx(expected)


def test_there_is_no_auroc_where_all_are_right_or_all_are_wrong() -> None:
    test = sure([[0.9, 0.8, 0.7], [0.1, 0.2, 0.3], [0.6, 0.4, 0.9]], [1, 1, 1])
    assert ranking_quality(unlearned("maxprob", 3), test) == [None, None, pytest.approx(0.75)]


def test_every_fitted_policy_has_an_auroc_at_each_exit(
    comparison: Comparison, recorded: Recorded
) -> None:
    assert set(comparison.auroc) == set(comparison.schedulers) == set(POLICIES)
    for name, quality in comparison.auroc.items():
        assert quality == ranking_quality(comparison.schedulers[name], recorded.test)
        assert len(quality) == 3 and all(value is not None and value > 0.5 for value in quality)


@pytest.mark.parametrize(
    ("budgets", "sentence"),
    [
        ([], "there are no budgets; give at least one"),
        ([2.0, 0.99], "budget 1 is 0.99, outside 1 to 3.3"),
        ([3.31], "budget 0 is 3.31, outside 1 to 3.3"),
        ([2.0, 2.0, np.nan], "budget 2 is nan, outside"),
        ([np.inf], "budget 0 is inf, outside"),
        ([0.0], "budget 0 is 0, outside"),
    ],
)
def test_budgets_outside_the_costs_are_named(budgets: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_budgets(budgets, COSTS)


def test_budgets_may_be_the_costs_of_the_first_and_the_last_exit() -> None:
    check_budgets([1.0, 3.3], COSTS)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"policies": ["maxprob", "best"]}, "policy 'best' is unknown; give some of stopping, "),
        ({"budgets": [0.5]}, "budget 0 is 0.5, outside 1 to 3.3"),
        ({"costs_ms": np.array([1.0, 3.3])}, "there are 2 costs for 3 exits"),
        ({"costs_ms": np.array([1.0, 2.0, 2.0])}, "cost 2 is 2, no more than cost 1, 2"),
        ({"costs_ms": np.array([0.0, 2.0, 3.0])}, "not all finite and above 0"),
        ({"costs_ms": np.array([1.0, 2.0, np.inf])}, "not all finite and above 0"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_is_fitted(
    recorded: Recorded, changes: dict[str, object], sentence: str
) -> None:
    said: list[str] = []
    asked = {"costs_ms": COSTS, "budgets": [2.0], "policies": ["maxprob"], "say": said.append}
    with pytest.raises(ValueError, match=sentence):
        compare(recorded, **asked | changes)  # type: ignore[arg-type]
    assert said == []


def test_what_is_being_fitted_is_said(recorded: Recorded) -> None:
    said: list[str] = []
    compare(
        recorded, COSTS, budgets=[2.0], policies=["stopping", "maxprob", "oracle"], say=said.append
    )
    assert [line.split()[-1] for line in said] == ["stopping", "maxprob", "oracle"]
