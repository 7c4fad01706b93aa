import gc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.confidence import entropy_confidence, finite_log_probs, max_probability
from scheduler.eenet import EENetPolicy, ExitScorer, load_published_scheduler
from scheduler.policy import score_all
from scheduler.thresholds import ThresholdTable, route

Array = NDArray[np.float64]

PUBLISHED = ("cifar10_resnet56", "sst2_bert")


def reduced(name: str) -> Path:
    """200 rows of a file made by the published code.

    Those of CIFAR-10 are the first 195 and the only five that clamping the history matters to; the
    exit weights are whole.
    """
    return Path(__file__).resolve().parents[1] / "data" / f"golden_{name}.npz"


def golden(name: str) -> Path:
    """A file made by the published code, kept beside the repository and not in it."""
    found = [
        folder / "shared" / "golden" / name
        for folder in Path(__file__).resolve().parents
        if (folder / "shared" / "golden" / name).exists()
    ]
    if not found:
        pytest.skip(f"the golden vectors {name} of the published code are not on this machine")
    return found[0]


def held_in(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as arrays:
        return dict(arrays)


def random_log_probs(exits: int, rows: int, classes: int, seed: int = 0) -> Array:
    logits = 2 * np.random.default_rng(seed).normal(size=(exits, rows, classes))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def random_policy(exits: int, classes: int, seed: int = 0) -> EENetPolicy:
    rng = np.random.default_rng(seed)
    weights = tuple(rng.normal(size=classes + 3 + k) for k in range(exits))
    table = ThresholdTable(np.array([1.0]), np.array([[0.0] * (exits - 1) + [-np.inf]]))
    return EENetPolicy(table, ExitScorer(weights))


def scorer_reading(*inputs: int | None, classes: int = 2) -> ExitScorer:
    """A scorer whose k-th score is one of its inputs as it stands, None for no score at all."""
    weights = [np.zeros(classes + 3 + k) for k in range(len(inputs))]
    for psi, index in zip(weights, inputs, strict=True):
        if index is not None:
            psi[index] = 1.0
    return ExitScorer(tuple(weights))


def test_features_are_probabilities_confidences_votes_and_earlier_scores() -> None:
    probs = np.array([[0.75, 0.25]])
    scorer = scorer_reading(2, 2, classes=2)
    first, _ = scorer.features(0, np.log(probs), scorer.start(1))
    entropy = float(entropy_confidence(np.log(probs))[0])
    assert first == pytest.approx(np.array([[0.75, 0.25, 0.75, entropy, 1.0]]))
    history = scorer.score(0, np.log(probs), scorer.start(1)).history
    second, _ = scorer.features(1, np.log([[0.25, 0.75]]), history)
    assert second == pytest.approx(np.array([[0.25, 0.75, 0.75, entropy, 0.5, 0.75]]))


def test_vote_follows_the_majority_over_exits() -> None:
    says_0, says_1 = np.log([[0.9, 0.1]]), np.log([[0.1, 0.9]])
    scorer = scorer_reading(4, 4, 4, classes=2)
    history = scorer.start(1)
    votes = []
    for k, log_probs in enumerate([says_0, says_1, says_0]):
        scored = scorer.score(k, log_probs, history)
        history = scored.history
        votes.append(scored.scores[0])
    assert votes == pytest.approx([1, 1 / 2, 2 / 3])


def test_scores_compare_unclamped_but_later_exits_read_them_clamped() -> None:
    log_probs = np.log(np.full((1, 2), 0.5))
    for weight, clamped in [(6.0, 1.0), (-6.0, 0.0), (0.6, 0.6)]:
        first, second = np.zeros(5), np.zeros(6)
        first[2], second[5] = 2 * weight, 1.0  # the max probability is 0.5
        scorer = ExitScorer((first, second))
        scored = scorer.score(0, log_probs, scorer.start(1))
        assert scored.scores == pytest.approx([weight])
        assert scorer.score(1, log_probs, scored.history).scores == pytest.approx([clamped])
        raw = replace(scorer, clamp_history=False)
        history = raw.score(0, log_probs, raw.start(1)).history
        assert raw.score(1, log_probs, history).scores == pytest.approx([weight])


def test_scoring_leaves_the_history_given_as_it_was() -> None:
    scorer = random_policy(2, 3).scorer
    history = scorer.start(4)
    scorer.score(0, random_log_probs(2, 4, 3)[0], history)
    assert not history.any()


def test_row_by_row_serving_scores_as_the_batch_does() -> None:
    policy, log_probs = random_policy(4, 6), random_log_probs(4, 30, 6)
    batch = score_all(policy, log_probs)
    for row in range(30):
        history = policy.start(1)
        for k in range(4):
            scored = policy.score(k, log_probs[k, row : row + 1], history)
            history = scored.history
            assert scored.scores == pytest.approx(batch[row, k], rel=1e-12)


@settings(deadline=None)
@given(st.permutations(range(12)), st.integers(1, 11))
def test_order_and_split_of_a_batch_do_not_change_the_scores(order: list[int], cut: int) -> None:
    policy, log_probs = random_policy(3, 4), random_log_probs(3, 12, 4)
    alone = score_all(policy, log_probs)
    parts = [score_all(policy, log_probs[:, rows]) for rows in (order[:cut], order[cut:])]
    assert np.concatenate(parts) == pytest.approx(alone[order], rel=1e-12)


def test_survivors_score_the_same_after_others_have_left() -> None:
    policy, log_probs = random_policy(3, 4), random_log_probs(3, 10, 4)
    everyone, staying = score_all(policy, log_probs), np.array([1, 4, 7])
    history = policy.score(0, log_probs[0], policy.start(10)).history
    history = policy.score(1, log_probs[1, staying], history[staying]).history
    scores = policy.score(2, log_probs[2, staying], history).scores
    assert scores == pytest.approx(everyone[staying, 2])


def test_scores_are_finite_for_probabilities_of_exactly_zero_and_one() -> None:
    certain = np.array([[[0.0, -np.inf, -np.inf]], [[-np.inf, 0.0, -np.inf]]], np.float16)
    assert np.isfinite(score_all(random_policy(2, 3), certain)).all()


def test_policy_decides_by_its_table() -> None:
    policy, rows = random_policy(3, 4), random_log_probs(1, 30, 4)[0]
    scored = policy.score(0, rows, policy.start(30))
    middle = float(np.median(scored.scores))
    table = ThresholdTable(np.array([1.0, 2.0]), np.array([[middle, 0, -np.inf], [9, 0, -np.inf]]))
    policy = replace(policy, table=table)
    assert (policy.kind, policy.num_exits, policy.never_exit_parameter) == ("eenet", 3, 2.0)
    assert policy.thresholds(1.5).tolist() == [middle, 0, -np.inf]
    assert policy.decide(0, scored, np.full(30, 1.0)).leave.sum() == 15
    assert not policy.decide(0, scored, np.full(30, 2.0)).leave.any()


# Recorded probabilities


def test_scores_of_recorded_probabilities_are_those_of_serving() -> None:
    policy, log_probs = random_policy(3, 4), random_log_probs(3, 20, 4)
    assert policy.scores(np.exp(log_probs)) == pytest.approx(score_all(policy, log_probs))


def test_a_raw_history_changes_scores_from_the_second_exit_on() -> None:
    policy, probs = random_policy(3, 4), np.exp(random_log_probs(3, 20, 4))
    clamped, raw = policy.scores(probs), policy.scores(probs, history="raw")
    assert np.array_equal(clamped[:, 0], raw[:, 0])
    assert np.abs(clamped[:, 1] - raw[:, 1]).max() > 0.1
    assert policy.scorer.clamp_history


def test_scores_take_probabilities_of_zero() -> None:
    probs = np.stack([np.eye(4)[[0, 1]]] * 3)
    assert np.isfinite(random_policy(3, 4).scores(probs)).all()


@pytest.mark.parametrize("shape", [(2, 5, 4), (3, 5, 3), (3, 4), (5, 3, 4), (1, 3, 5, 4)])
def test_probabilities_of_another_shape_are_refused_with_the_right_one(
    shape: tuple[int, ...],
) -> None:
    policy = load_published_scheduler(reduced("cifar10_resnet56"))
    wanted = r"the scheduler has 3 exits and 10 classes; give \(K, N, C\) = \(3, N, 10\)"
    for asked in (policy.scores, policy.assignment):
        with pytest.raises(ValueError, match=wanted) as raised:
            asked(np.full(shape, 0.1))
        assert str(shape) in str(raised.value)


def test_a_history_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="history is 'clipped'; give 'clamped' or 'raw'"):
        random_policy(3, 4).scores(np.full((3, 1, 4), 0.25), history="clipped")  # type: ignore[arg-type]


def test_a_policy_without_assignment_weights_says_so() -> None:
    with pytest.raises(ValueError, match="no assignment weights"):
        random_policy(3, 4).assignment(np.full((3, 1, 4), 0.25))


# The published code


def published_thresholds(scores: Array, shares: Array) -> Array:
    """Thresholds (K,) of the published code: floor(N p_k) rows, at least 1, and 0 at the last."""
    thresholds, staying = np.zeros(len(shares)), np.arange(len(scores))
    for k in range(len(shares) - 1):
        descending = np.sort(scores[staying, k])[::-1]
        thresholds[k] = descending[max(int(len(scores) * shares[k]), 1) - 1]
        staying = staying[scores[staying, k] < thresholds[k]]
    return thresholds


def test_the_published_rule_of_thresholds_gives_an_empty_exit_one_row() -> None:
    scores = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.7, 0.3, 0], [0.6, 0.4, 0]])
    assert published_thresholds(scores, np.array([0.1, 0.7, 0.2])).tolist() == [0.9, 0.3, 0]


def assert_as_published(path: Path) -> None:
    held = held_in(path)
    policy, probs = load_published_scheduler(path), held["probs"]
    log_probs = finite_log_probs(probs)
    for ours, theirs in (
        (policy.scores(probs), "scores"),
        (policy.scores(probs, history="raw"), "scores_unclamped_history"),
        (score_all(policy, log_probs), "scores"),
        (policy.assignment(probs), "assignment"),
        (max_probability(log_probs).T, "max_score"),
        (entropy_confidence(log_probs).T, "entropy_score"),
    ):
        assert ours.shape == held[theirs].shape, theirs
        assert np.abs(ours - held[theirs]).max() < 1e-5, theirs


@pytest.mark.parametrize("name", PUBLISHED)
def test_authors_weights_reproduce_the_authors_numbers_on_some_rows(name: str) -> None:
    assert_as_published(reduced(name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_authors_weights_reproduce_the_authors_numbers(name: str) -> None:
    assert_as_published(golden(f"{name}.npz"))


def test_the_reduced_file_holds_rows_that_clamping_matters_to() -> None:
    held = held_in(reduced("cifar10_resnet56"))
    moved = np.abs(held["scores"] - held["scores_unclamped_history"]).max(1)
    assert (moved > 1e-3).sum() >= 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_our_scores_and_assignment_give_the_authors_thresholds(name: str) -> None:
    path = golden(f"{name}.npz")
    held, policy = held_in(path), load_published_scheduler(path)
    thresholds = published_thresholds(
        policy.scores(held["probs"]), policy.assignment(held["probs"]).mean(0)
    )
    assert thresholds == pytest.approx(held["thresholds_from_assignment"], abs=1e-5)


def test_a_published_policy_lets_go_at_the_last_exit_only_until_it_is_fitted() -> None:
    path = reduced("sst2_bert")
    policy = load_published_scheduler(path)
    assert (policy.num_exits, policy.scorer.num_classes) == (4, 2)
    scores = policy.scores(held_in(path)["probs"])
    assert set(route(scores, policy.thresholds(policy.never_exit_parameter))) == {3}


def test_the_path_may_be_text() -> None:
    assert load_published_scheduler(str(reduced("sst2_bert"))).num_exits == 4


def damaged(tmp_path: Path, **changes: NDArray[Any] | None) -> Path:
    """The reduced CIFAR-10 file with arrays replaced or, by None, left out."""
    held = held_in(reduced("cifar10_resnet56")) | changes
    path = tmp_path / "weights.npz"
    np.savez(path, **{name: array for name, array in held.items() if array is not None})
    return path


def assert_refused(path: Path, *names: str) -> None:
    with pytest.raises(ValueError) as raised:
        load_published_scheduler(path)
    for name in (str(path), *names):
        assert name in str(raised.value)


@pytest.mark.parametrize(
    "key",
    [
        "exit0.score.confidence.weight",
        "exit2.score.confidence.weight",
        "exit1.assign.0.weight",
        "exit1.assign.2.weight",
        "exit2.assign.2.bias",
        "exit1.assign.0.bias",
        "exit2.score.prediction.weight",
    ],
)
def test_a_missing_array_is_named(tmp_path: Path, key: str) -> None:
    assert_refused(damaged(tmp_path, **{key: None}), f"lacks {key}")


@pytest.mark.parametrize(
    ("key", "shape", "needed"),
    [
        ("exit1.score.prediction.weight", (1, 9), "(10,)"),
        ("exit1.score.confidence.weight", (4,), "(3,)"),
        ("exit0.assign.0.weight", (6, 13), "(6, 12)"),
        ("exit0.assign.2.weight", (1, 5), "(1, 6)"),
        ("exit2.assign.2.bias", (2,), "(1,)"),
    ],
)
def test_an_array_of_another_shape_is_named_with_the_shape_needed(
    tmp_path: Path, key: str, shape: tuple[int, ...], needed: str
) -> None:
    assert_refused(damaged(tmp_path, **{key: np.zeros(shape)}), key, str(shape), needed)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["exit0.score.prediction.weight", "exit2.assign.0.bias"])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, key: str, value: float) -> None:
    array = held_in(reduced("cifar10_resnet56"))[key].copy()
    array.flat[1] = value
    assert_refused(damaged(tmp_path, **{key: array}), key, "not finite")


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    words = np.array(["a"] * 10)
    assert_refused(damaged(tmp_path, **{"exit0.score.prediction.weight": words}))


LATER_EXITS = ("exit1", "exit2")


def test_a_scheduler_of_one_exit_is_refused(tmp_path: Path) -> None:
    later = {key: None for key in held_in(reduced("cifar10_resnet56")) if key[:5] in LATER_EXITS}
    assert_refused(damaged(tmp_path, **later), "1 exits", "exit1.score.prediction.weight")


@pytest.mark.parametrize("content", [b"", b"not an archive"])
def test_a_file_that_is_no_npz_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.npz"
    path.write_bytes(content)
    assert_refused(path, "npz")


def test_a_damaged_archive_is_named_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    path.write_bytes(b"PK\x03\x04 cut off")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_refused(path, "npz")
        gc.collect()
    assert not [warning for warning in caught if warning.category is ResourceWarning]


def test_one_array_in_place_of_an_archive_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "weights.npy", np.zeros(3))
    assert_refused(tmp_path / "weights.npy", "npz")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nothing.npz")
