import numpy as np
import pytest
from sklearn.metrics import f1_score

from models.label_sets import f1_scores, fit_thresholds, label_probabilities


def test_probabilities_come_back_from_values_relative_to_thresholds() -> None:
    probs, thresholds = np.array([[0.2, 0.7], [0.9, 0.01]]), np.array([0.3, 0.8])
    shifted = np.log(probs / (1 - probs)) - np.log(thresholds / (1 - thresholds))
    has = 1 / (1 + np.exp(-shifted))
    log_probs = np.log(np.stack([1 - has, has], -1))
    np.testing.assert_allclose(label_probabilities(log_probs, thresholds), probs)
    assert (log_probs.argmax(-1) == (probs > thresholds)).all()


def test_extreme_values_stay_probabilities() -> None:
    log_probs = np.array([[[-1e4, 0.0], [0.0, -1e4]]], np.float32)
    found = label_probabilities(log_probs, np.array([0.5, 0.5]))
    np.testing.assert_allclose(found, [[1.0, 0.0]], atol=1e-30)


def test_the_threshold_of_a_label_has_the_best_f1() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (300, 3))
    probs = np.clip(0.3 * labels + random.uniform(0, 0.7, labels.shape), 0.06, 0.94)
    for label, threshold in enumerate(fit_thresholds(probs, labels)):
        score = f1_score(labels[:, label], probs[:, label] > threshold)
        others = [
            f1_score(labels[:, label], probs[:, label] > t) for t in np.linspace(0.05, 0.95, 7)
        ]
        assert score >= max(others) - 1e-9


@pytest.mark.parametrize("value", [0, 1])
def test_a_label_of_all_rows_or_none_gets_a_half(value: int) -> None:
    assert fit_thresholds(np.full((4, 1), 0.3), np.full((4, 1), value)).tolist() == [0.5]


def test_f1_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(1)
    labels, answers = random.integers(0, 2, (2, 50, 4))
    score = f1_scores(answers, labels)
    assert score.micro == pytest.approx(f1_score(labels, answers, average="micro"))
    assert score.macro == pytest.approx(f1_score(labels, answers, average="macro"))
