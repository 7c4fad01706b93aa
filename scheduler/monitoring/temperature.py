"""Temperature scaling: one number that calibrates probabilities (Guo et al. 2017)."""

import numpy as np
from numpy.typing import NDArray

from scheduler.confidence import SMALLEST_LOG

Floats = NDArray[np.floating]

LOWEST, HIGHEST = 0.05, 20.0
STEPS = 40


def fit_temperature(log_probs: Floats, labels: NDArray[np.int64]) -> float:
    """Return the temperature at which the labels are most likely, between 0.05 and 20.

    Args:
        log_probs: (N, C).
        labels: (N,).
    """
    logs = _finite(log_probs)
    label_mean = logs[np.arange(len(labels)), labels].mean()

    def slope(sharpness: float) -> float:
        """Return the slope of the mean negative log-likelihood, convex in 1 / temperature."""
        weights = np.exp(sharpness * (logs - logs.max(1, keepdims=True)))
        return float((weights * logs).sum(1) @ (1 / weights.sum(1)) / len(logs) - label_mean)

    low, high = np.log(1 / HIGHEST), np.log(1 / LOWEST)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(float(np.exp(middle))) > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))


def draw_labels(
    log_probs: Floats, temperature: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw a label for each row (N, C) at a temperature; returns (N,)."""
    logs = _finite(log_probs) / temperature
    drawn: NDArray[np.int64] = (logs + rng.gumbel(size=logs.shape)).argmax(1)
    return drawn


def _finite(log_probs: Floats) -> NDArray[np.float64]:
    return np.maximum(log_probs.astype(np.float64), SMALLEST_LOG)
