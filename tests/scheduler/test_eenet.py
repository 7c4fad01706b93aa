from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.confidence import entropy_confidence
from scheduler.eenet import EENetPolicy, ExitScorer
from scheduler.policy import score_all
from scheduler.thresholds import ThresholdTable

Array = NDArray[np.float64]


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


def random_log_probs(exits: int, rows: int, classes: int, seed: int = 0) -> Array:
    logits = 2 * np.random.default_rng(seed).normal(size=(exits, rows, classes))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def random_policy(exits: int, classes: int, seed: int = 0) -> EENetPolicy:
    rng = np.random.default_rng(seed)
    weights = tuple(rng.normal(size=classes + 3 + k) for k in range(exits))
    table = ThresholdTable(np.array([1.0]), np.array([[0.0] * (exits - 1) + [-np.inf]]))
    return EENetPolicy(ExitScorer(weights), table)


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
    _, history = scorer.score(0, np.log(probs), scorer.start(1))
    second, _ = scorer.features(1, np.log([[0.25, 0.75]]), history)
    assert second == pytest.approx(np.array([[0.25, 0.75, 0.75, entropy, 0.5, 0.75]]))


def test_vote_follows_the_majority_over_exits() -> None:
    says_0, says_1 = np.log([[0.9, 0.1]]), np.log([[0.1, 0.9]])
    scorer = scorer_reading(4, 4, 4, classes=2)
    history = scorer.start(1)
    votes = []
    for k, log_probs in enumerate([says_0, says_1, says_0]):
        scores, history = scorer.score(k, log_probs, history)
        votes.append(scores[0])
    assert votes == pytest.approx([1, 1 / 2, 2 / 3])


def test_scores_compare_unclamped_but_later_exits_read_them_clamped() -> None:
    log_probs = np.log(np.full((1, 2), 0.5))
    for weight, clamped in [(6.0, 1.0), (-6.0, 0.0), (0.6, 0.6)]:
        first, second = np.zeros(5), np.zeros(6)
        first[2], second[5] = 2 * weight, 1.0  # the max probability is 0.5
        scorer = ExitScorer((first, second))
        scores, history = scorer.score(0, log_probs, scorer.start(1))
        assert scores == pytest.approx([weight])
        assert scorer.score(1, log_probs, history).scores == pytest.approx([clamped])


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
            scores, history = policy.score(k, log_probs[k, row : row + 1], history)
            assert scores == pytest.approx(batch[row, k], rel=1e-12)


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
    _, history = policy.score(0, log_probs[0], policy.start(10))
    _, history = policy.score(1, log_probs[1, staying], history[staying])
    scores, _ = policy.score(2, log_probs[2, staying], history)
    assert scores == pytest.approx(everyone[staying, 2])


def test_scores_are_finite_for_probabilities_of_exactly_zero_and_one() -> None:
    certain = np.array([[[0.0, -np.inf, -np.inf]], [[-np.inf, 0.0, -np.inf]]], np.float16)
    assert np.isfinite(score_all(random_policy(2, 3), certain)).all()


def test_policy_decides_by_its_table() -> None:
    policy = random_policy(3, 4)
    assert policy.num_exits == 3
    assert policy.thresholds(5.0).tolist() == [0, 0, -np.inf]
    leave = policy.decide(0, np.array([-0.1, 0.0]), np.array([1.0, 1.0])).leave
    assert leave.tolist() == [False, True]


@pytest.mark.parametrize(("name", "exits"), [("cifar10_resnet56", 3), ("sst2_bert", 4)])
def test_authors_weights_reproduce_the_authors_scores(name: str, exits: int) -> None:
    with np.load(golden(f"{name}.npz")) as arrays:
        weights = []
        for k in range(exits):
            prediction = arrays[f"exit{k}.score.prediction.weight"][0]
            confidence = arrays[f"exit{k}.score.confidence.weight"]
            # The published code leaves the vote out: its weight, the third, is zero.
            ours = [prediction, confidence[:2], [0.0], confidence[2:]]
            weights.append(np.concatenate(ours).astype(np.float64))
        log_probs, expected = np.log(arrays["probs"].astype(np.float64)), arrays["scores"]
    table = ThresholdTable(np.zeros(1), np.zeros((1, exits)))
    scores = score_all(EENetPolicy(ExitScorer(tuple(weights)), table), log_probs)
    assert np.abs(scores - expected).max() < 1e-5
