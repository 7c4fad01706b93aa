import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from scheduler.combiner import Combiner, log_softmax
from scheduler.fitting.combiner import Candidate, fit_combiner, simplest_good
from scheduler.fitting.softmax_regression import fit_powers, fit_stack

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

CLASSES = 4


def problem(rows: int, seed: int, *, kind: str = "independent") -> tuple[Array, Labels]:
    """Outputs (3, N, C) of heads and labels (N,).

    independent: each head has evidence of its own, so that powers help; confused: besides, the
    heads take class 1 for class 0, which only a stack can see; last: the last head knows all that
    the others know, so that nothing helps it.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    evidence = rng.normal(size=(3, rows, CLASSES)) + 1.5 * np.eye(CLASSES)[labels]
    logits = 1.5 * evidence
    if kind == "last":
        logits = 1.5 * np.cumsum(evidence, 0)
    if kind == "confused":
        logits[:, labels == 1, 0] += 4.0
    return np.stack([log_softmax(each) for each in logits]), labels


def log_loss(log_probs: Array, labels: Labels) -> Array:
    """The mean log loss of each exit, (K,)."""
    return np.asarray(-log_probs[:, np.arange(len(labels)), labels].mean(1))


def forms(combiner: Combiner) -> list[int]:
    """The dimensions of each exit's weights; 0: none."""
    return [0 if each is None else each.ndim for each in combiner.weights]


# Regressions


def test_powers_are_those_of_the_heads_that_know_something() -> None:
    log_probs, labels = problem(20_000, 0)
    # The logits were 1.5 times the evidence of unit variance and distance 1.5: exact at power 1.
    assert fit_powers(log_probs, labels) == pytest.approx(np.ones(3), abs=0.05)
    log_probs, labels = problem(20_000, 0, kind="last")
    assert fit_powers(log_probs, labels) == pytest.approx(np.array([0.0, 0, 1]), abs=0.05)


@pytest.mark.parametrize("ridge", [1.0, 50.0])
def test_a_stack_agrees_with_scikit_learn(ridge: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 600)
    inputs = rng.normal(size=(600, 5)) + labels[:, None] * np.array([1, 0, 0.5, 0, 0])
    with_one = np.concatenate([np.ones((600, 1)), inputs], 1)
    penalty = np.array([1e-6, *[ridge] * 5])
    start = np.zeros((6, CLASSES))
    found = fit_stack(with_one, np.zeros((600, CLASSES)), labels, penalty, start)
    theirs = LogisticRegression(C=1 / ridge, tol=1e-9, max_iter=1000).fit(inputs, labels)
    ours = log_softmax(with_one @ found)
    assert ours == pytest.approx(theirs.predict_log_proba(inputs), abs=0.02)


def test_the_offsets_of_a_stack_are_corrected_only_where_they_are_wrong() -> None:
    log_probs, labels = problem(5000, 0)
    offsets, inputs = log_probs.sum(0), np.ones((5000, 1))
    found = fit_stack(inputs, offsets, labels, np.ones(1), np.zeros((1, CLASSES)))
    assert found == pytest.approx(np.zeros((1, CLASSES)), abs=0.2)
    wrong = offsets + np.array([1.0, 0, 0, -1])
    found = fit_stack(inputs, wrong, labels, np.ones(1), np.zeros((1, CLASSES)))
    assert (found - found.mean())[0] == pytest.approx(np.array([-1.0, 0, 0, 1]), abs=0.2)


# The choice


def candidates(*losses: Array) -> list[Candidate]:
    """Candidates of two classes with these losses of the label 0."""
    return [
        Candidate(np.stack([-each, np.full_like(each, -1e9)], 1), lambda: None) for each in losses
    ]


def test_the_simplest_within_one_standard_error_is_chosen() -> None:
    rng = np.random.default_rng(0)
    best, labels = rng.exponential(size=2000), np.zeros(2000, np.int64)
    noise = rng.normal(size=2000)
    noise -= noise.mean()
    error = noise.std() / np.sqrt(2000)
    near, far = best + noise + 0.9 * error, best + noise + 1.1 * error
    for losses, expected in (
        ((best, best, best), 0),
        ((near, best, best), 0),
        ((far, best, best), 1),
        ((far, far, best), 2),
        ((far, near, best), 1),
    ):
        tried = candidates(*losses)
        assert simplest_good(tried, labels) is tried[expected]


def test_a_candidate_that_is_less_often_right_does_not_count() -> None:
    labels = np.zeros(2000, np.int64)
    own, wrong = np.log(np.tile([0.6, 0.4], (2000, 1))), np.log(np.tile([0.99, 0.01], (2000, 1)))
    wrong[:5] = np.log([0.4, 0.6])
    better = np.log(np.tile([0.7, 0.3], (2000, 1)))
    tried = [Candidate(each, lambda: None) for each in (own, wrong, better)]
    assert simplest_good(tried, labels) is tried[2]


@pytest.mark.parametrize(
    ("kind", "expected"), [("independent", 1), ("confused", 2)], ids=["powers", "stack"]
)
def test_each_kind_of_evidence_gets_its_form(kind: str, expected: int) -> None:
    combiner = fit_combiner(*problem(2000, 0, kind=kind), seed=0).combiner
    assert forms(combiner)[-1] == expected


def test_nothing_is_combined_where_the_last_head_knows_all() -> None:
    log_probs, labels = problem(2000, 0, kind="last")
    combiner, unseen = fit_combiner(log_probs, labels, seed=0)
    assert combiner == Combiner() and unseen is log_probs


def test_few_rows_get_powers_at_most() -> None:
    log_probs, labels = problem(1999, 0, kind="confused")
    assert max(forms(fit_combiner(log_probs, labels, seed=0).combiner)) == 1


def test_many_classes_get_powers_at_most() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 65, 1500)
    logits = rng.normal(size=(2, 1500, 65)) + 3 * np.eye(65)[labels]
    logits[:, labels == 1, 0] += 4.0
    log_probs = np.stack([log_softmax(each) for each in logits])
    assert forms(fit_combiner(log_probs, labels, seed=0).combiner)[-1] == 1


@pytest.mark.parametrize("shape", [(1, 500, 4), (3, 199, 4), (3, 300, 2, 4)])
def test_some_sets_are_never_combined(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    log_probs = np.log(rng.dirichlet(np.ones(4), shape[:-1]))
    labels = rng.integers(0, 4, shape[1:-1])
    combiner, unseen = fit_combiner(log_probs, labels, seed=0)
    assert combiner == Combiner() and unseen is log_probs


# Gains and harm


@pytest.mark.parametrize("kind", ["independent", "confused"])
def test_unseen_rows_are_predicted_as_well_as_the_held_out_rows_promise(kind: str) -> None:
    log_probs, labels = problem(3000, 0, kind=kind)
    combiner, unseen = fit_combiner(log_probs, labels, seed=0)
    fresh, fresh_labels = problem(20_000, 1, kind=kind)
    promised, kept = log_loss(unseen, labels), log_loss(combiner.combine_all(fresh), fresh_labels)
    assert promised == pytest.approx(kept, abs=0.05)
    assert (kept[1:] < log_loss(fresh, fresh_labels)[1:] - 0.05).all()


@given(
    st.integers(200, 2400),
    st.integers(0, 10_000),
    st.sampled_from(["independent", "confused", "last"]),
)
@settings(max_examples=15, deadline=None)
def test_a_fit_to_few_rows_does_no_harm(rows: int, seed: int, kind: str) -> None:
    combiner, _ = fit_combiner(*problem(rows, seed, kind=kind), seed=seed)
    fresh, labels = problem(10_000, seed + 10_001, kind=kind)
    combined = combiner.combine_all(fresh)
    assert (log_loss(combined, labels) < log_loss(fresh, labels) + 0.05).all()
    right, before = ((each.argmax(-1) == labels).mean(1) for each in (combined, fresh))
    assert (right > before - 0.005).all()


def test_a_class_that_calibration_never_saw_does_not_explode() -> None:
    log_probs, labels = problem(2000, 0, kind="confused")
    logits = np.concatenate([log_probs, np.full((3, 2000, 1), -14.0)], 2)
    combiner = fit_combiner(
        np.stack([log_softmax(each) for each in logits]), labels, seed=0
    ).combiner
    sure = np.log(np.array([0.01, 0.01, 0.01, 0.01, 0.96]))
    combined = combiner.combine_all(np.tile(sure, (3, 1, 1)))
    assert (combined.argmax(-1) == CLASSES).all()


def test_the_same_seed_gives_the_same_combiner() -> None:
    log_probs, labels = problem(1200, 0, kind="confused")
    first, again = (fit_combiner(log_probs, labels, seed=3) for _ in range(2))
    assert np.array_equal(first.log_probs, again.log_probs)
    other = fit_combiner(log_probs, labels, seed=4)
    assert not np.array_equal(first.log_probs, other.log_probs)


def test_a_row_is_combined_without_its_own_label() -> None:
    log_probs, labels = problem(400, 0)
    before = fit_combiner(log_probs, labels, seed=0).log_probs
    changed = labels.copy()
    changed[7] = (labels[7] + 1) % CLASSES
    after = fit_combiner(log_probs, changed, seed=0).log_probs
    assert np.array_equal(before[:, 7], after[:, 7])
    assert not np.array_equal(before, after)
