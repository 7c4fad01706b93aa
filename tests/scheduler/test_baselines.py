import numpy as np
import pytest
from numpy.typing import NDArray

from scheduler.baselines import ConfidencePolicy, PatiencePolicy
from scheduler.confidence import entropy_confidence
from scheduler.policy import score_all
from scheduler.thresholds import ThresholdTable

Array = NDArray[np.float64]


def table() -> ThresholdTable:
    thresholds = np.array([[-np.inf, -np.inf], [0.8, -np.inf], [np.inf, -np.inf]])
    return ThresholdTable(np.array([1.0, 2.0, 3.0]), thresholds)


def saying(*answers: int, sure: float = 0.8) -> Array:
    """Log-probabilities (K, 1, 3) of one row that gives these answers, one an exit."""
    return np.log([[np.where(np.arange(3) == answer, sure, (1 - sure) / 2)] for answer in answers])


def patience(exits: int) -> PatiencePolicy:
    return PatiencePolicy(ThresholdTable.closed(exits))


@pytest.mark.parametrize("kind", ["maxprob", "maxprob-opt"])
def test_maxprob_scores_by_the_largest_class_probability_at_every_exit(kind: str) -> None:
    log_probs = np.log([[[0.9, 0.1], [0.3, 0.7]], [[0.5, 0.5], [0.0001, 0.9999]]])
    scores = score_all(ConfidencePolicy(table(), kind), log_probs)
    assert scores == pytest.approx(np.array([[0.9, 0.5], [0.7, 0.9999]]))


@pytest.mark.parametrize("kind", ["entropy", "entropy-opt"])
def test_entropy_scores_by_the_entropy_confidence_at_every_exit(kind: str) -> None:
    log_probs = np.log([[[0.9, 0.1], [0.3, 0.7]], [[0.5, 0.5], [0.0001, 0.9999]]])
    scores = score_all(ConfidencePolicy(table(), kind), log_probs)
    assert scores == pytest.approx(entropy_confidence(log_probs).T)
    assert scores[0, 1] == pytest.approx(0)


def test_max_probability_and_entropy_rank_rows_differently() -> None:
    """A row between two classes out of three is less sure of its best, but has less entropy."""
    log_probs = np.log([[[0.56, 0.22, 0.22], [0.52, 0.479, 0.001]]] * 2)
    by_max, by_entropy = (
        score_all(ConfidencePolicy(table(), kind), log_probs)[:, 0]
        for kind in ("maxprob", "entropy")
    )
    assert by_max[0] > by_max[1]
    assert by_entropy[0] < by_entropy[1]


def test_rows_of_one_batch_leave_by_their_own_budgets() -> None:
    policy, chances = ConfidencePolicy(table(), "maxprob"), np.array([0.6, 0.8, 0.79, 0.99])
    scored = policy.score(0, np.log(np.stack([chances, 1 - chances], 1)), policy.start(4))
    decision = policy.decide(0, scored, np.array([1.0, 2.0, 2.0, 3.0]))
    assert decision.leave.tolist() == [True, True, False, False]
    assert decision.thresholds.tolist() == [-np.inf, 0.8, 0.8, np.inf]


def test_policies_tell_their_size_kind_and_thresholds() -> None:
    for policy, kind in (
        (ConfidencePolicy(table(), "entropy-opt"), "entropy-opt"),
        (PatiencePolicy(table()), "patience"),
    ):
        assert (policy.kind, policy.num_exits, policy.never_exit_parameter) == (kind, 2, 3.0)
        assert policy.thresholds(2.7).tolist() == [0.8, -np.inf]
        assert policy.start(3).shape[0] == 3


def test_patience_counts_the_run_of_equal_answers_that_ends_at_the_exit() -> None:
    answers = (1, 1, 0, 0, 0, 1)
    scores = score_all(patience(6), saying(*answers))[0]
    assert scores == pytest.approx(np.array([1, 2, 1, 2, 3, 1]) + 0.8)


def test_patience_breaks_a_run_that_returns_to_an_older_answer() -> None:
    assert score_all(patience(3), saying(2, 0, 2))[0] == pytest.approx([1.8, 1.8, 1.8])


def test_patience_starts_with_a_run_of_one_whatever_the_first_answer() -> None:
    for answer in range(3):
        assert score_all(patience(2), saying(answer, answer))[0] == pytest.approx([1.8, 2.8])


def test_the_max_probability_tells_equal_runs_apart_and_never_beats_a_longer_one() -> None:
    unsure, sure, run = saying(0, 1, sure=0.34), saying(0, 1, sure=0.99), saying(1, 1, sure=0.34)
    scores = [score_all(patience(2), rows)[0, 1] for rows in (unsure, sure, run)]
    assert scores == sorted(scores)
    assert len(set(scores)) == 3


@pytest.mark.parametrize("kind", ["maxprob", "entropy", "patience"])
def test_scores_do_not_depend_on_the_batch(kind: str) -> None:
    logits = 2 * np.random.default_rng(0).normal(size=(3, 20, 4))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    closed = ThresholdTable.closed(3)
    policy = PatiencePolicy(closed) if kind == "patience" else ConfidencePolicy(closed, kind)
    together = score_all(policy, log_probs)
    alone = [score_all(policy, log_probs[:, row : row + 1])[0] for row in range(20)]
    assert together == pytest.approx(np.array(alone))
