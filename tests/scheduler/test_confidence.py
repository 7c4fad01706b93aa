import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.confidence import entropy_confidence, max_probability, vote


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


def test_vote_is_the_share_of_the_largest_count_not_of_the_largest_class() -> None:
    counts = np.array([[3, 0, 1], [0, 1, 3], [1, 1, 1], [1, 0, 0]])
    assert vote(counts) == pytest.approx([3 / 4, 3 / 4, 1 / 3, 1])
