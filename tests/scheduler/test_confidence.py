import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.confidence import (
    SMALLEST_LOG,
    entropy_confidence,
    finite_log_probs,
    max_probability,
    vote,
)


def test_max_probability_is_that_of_the_likeliest_class() -> None:
    log_probs = np.log([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])
    assert max_probability(log_probs) == pytest.approx([0.7, 0.5])


def test_max_probability_of_half_precision_logarithms_is_double_precision() -> None:
    sure = max_probability(np.array([[-1e-4, -9.5], [-2e-4, -9.0]], np.float16))
    assert sure.dtype == np.float64
    assert sure[1] < sure[0] < 1  # as float16 probabilities the two would tie at 1


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_entropy_confidence_is_one_if_certain_and_zero_if_uniform(classes: int) -> None:
    certain = np.full(classes, -np.inf)
    certain[classes // 2] = 0.0
    uniform = np.full(classes, -np.log(classes))
    confidence = entropy_confidence(np.stack([certain, uniform]))
    assert confidence == pytest.approx([1.0, 0.0], abs=1e-12)


def test_entropy_confidence_takes_zero_log_zero_as_zero() -> None:
    log_probs = np.array([[-np.inf, np.log(0.5), np.log(0.5)]])
    assert entropy_confidence(log_probs) == pytest.approx([1 - np.log(2) / np.log(3)])


@given(st.lists(st.floats(0, 50), min_size=2, max_size=8))
def test_entropy_confidence_lies_between_zero_and_one(logits: list[float]) -> None:
    log_probs = np.array([logits]) - np.log(np.exp(logits).sum())
    assert -1e-9 <= entropy_confidence(log_probs)[0] <= 1 + 1e-9


def test_entropy_confidence_of_probabilities_at_hand_is_the_same() -> None:
    log_probs = np.log([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])
    given_both = entropy_confidence(log_probs, np.exp(log_probs))
    assert np.array_equal(given_both, entropy_confidence(log_probs))


def test_entropy_confidence_of_half_precision_logarithms_is_double_precision() -> None:
    log_probs = np.log(np.full((1, 1000), 1 / 1000)).astype(np.float16)
    confidence = entropy_confidence(log_probs)
    assert confidence.dtype == np.float64
    # 1000 terms added up in half precision would be wrong by a hundredth and more.
    assert confidence == pytest.approx([0], abs=2e-3)


def test_confidences_keep_the_axes_before_the_classes() -> None:
    log_probs = np.log(np.full((3, 5, 4), 0.25))
    assert entropy_confidence(log_probs).shape == max_probability(log_probs).shape == (3, 5)


def test_vote_is_the_share_of_the_largest_count_not_of_the_largest_class() -> None:
    counts = np.array([[3, 0, 1], [0, 1, 3], [2, 1, 1], [0, 4, 0]])
    assert vote(counts, 4) == pytest.approx([3 / 4, 3 / 4, 1 / 2, 1])


def test_logarithms_of_zero_are_finite_and_count_for_nothing() -> None:
    logs = finite_log_probs(np.array([[0.0, 1.0], [1e-30, 1.0]], np.float32))
    assert logs.dtype == np.float64
    assert logs[:, 0] == pytest.approx([SMALLEST_LOG, np.log(1e-30)])
    assert logs[:, 1].tolist() == [0, 0]
    assert np.exp(logs[0]).sum() == 1
    assert entropy_confidence(logs[:1]).tolist() == [1]
