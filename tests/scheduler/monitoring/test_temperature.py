import numpy as np
import pytest

from scheduler.monitoring.temperature import draw_labels, fit_temperature


def log_probs_of(rows: int, temperature: float = 1.0) -> np.ndarray:
    logits = 3 * np.random.default_rng(0).normal(size=(rows, 5)) / temperature
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7, 4.0])
def test_the_temperature_that_labels_were_drawn_at_is_found(temperature: float) -> None:
    log_probs = log_probs_of(20_000)
    labels = draw_labels(log_probs, temperature, np.random.default_rng(1))
    assert fit_temperature(log_probs, labels) == pytest.approx(temperature, rel=0.05)


def test_a_network_that_is_always_right_or_wrong_keeps_it_finite() -> None:
    log_probs = log_probs_of(100)
    assert fit_temperature(log_probs, log_probs.argmax(1)) == pytest.approx(0.05, rel=0.01)
    assert fit_temperature(log_probs, log_probs.argmin(1)) == pytest.approx(20, rel=0.01)


def test_zero_chances_and_half_precision_are_taken() -> None:
    log_probs = np.full((50, 3), -np.inf, np.float16)
    log_probs[:, 1] = 0
    labels = np.ones(50, np.int64)
    assert np.isfinite(fit_temperature(log_probs, labels))
    assert draw_labels(log_probs, 2.0, np.random.default_rng(0)).tolist() == labels.tolist()


def test_labels_are_drawn_as_often_as_their_chance() -> None:
    log_probs = np.tile(np.log([0.7, 0.2, 0.1]), (20_000, 1))
    drawn = draw_labels(log_probs, 1.0, np.random.default_rng(0))
    shares = np.bincount(drawn, minlength=3) / len(drawn)
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.01)
    assert np.array_equal(drawn, draw_labels(log_probs, 1.0, np.random.default_rng(0)))
