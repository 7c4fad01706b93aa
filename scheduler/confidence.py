"""Unlearned confidences computed from log-probabilities (Ilhan et al. 2024, section 3.2)."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Array = NDArray[np.float64]

SMALLEST_LOG = -100.0  # in place of log 0: finite, and e^-100 is negligible


def logistic(logits: Array) -> Array:
    """Return `1 / (1 + e^-z)` without overflow."""
    chances: Array = 0.5 + 0.5 * np.tanh(0.5 * logits)
    return chances


def finite_log_probs(probs: Floats) -> Array:
    """Return finite logarithms of probabilities (..., C), which may be 0."""
    logs: Array = np.log(np.maximum(probs.astype(np.float64), np.exp(SMALLEST_LOG)))
    return logs


def max_probability(log_probs: Floats) -> Array:
    """Return `max_c yhat_c`; (A, C) to (A,)."""
    best: Array = np.exp(log_probs.max(-1), dtype=np.float64)
    return best


def entropy_confidence(log_probs: Floats, probs: Array | None = None) -> Array:
    """Return `1 + sum_c yhat log yhat / log C`: 1 if certain, 0 if uniform; (A, C) to (A,).

    Args:
        log_probs: Logarithms; -inf is allowed, since 0 log 0 = 0.
        probs: Their exponentials, if the caller has them already.
    """
    if probs is None:
        probs = np.exp(log_probs, dtype=np.float64)
    negative_entropy: Array = np.einsum(
        "...c,...c->...", probs, np.maximum(log_probs, SMALLEST_LOG)
    )
    confidence: Array = 1 + negative_entropy / np.log(log_probs.shape[-1])
    return confidence


def vote(counts: Floats, exits: int) -> Array:
    """Return `max_c #{k' <= k : argmax yhat_k' = c} / k` from votes; (A, C) to (A,)."""
    share: Array = counts.max(-1) / exits
    return share
