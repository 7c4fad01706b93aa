"""Unlearned confidences, from log-probabilities (Ilhan et al. 2024, section 3.2)."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def max_probability(log_probs: Floats) -> NDArray[np.float64]:
    """`max_c yhat_c`; (A, C) in, (A,) out."""
    best: NDArray[np.float64] = np.exp(log_probs.max(-1).astype(np.float64))
    return best


def entropy_confidence(log_probs: Floats) -> NDArray[np.float64]:
    """`1 + sum_c yhat log yhat / log C`: 1 if certain, 0 if uniform; (A, C) to (A,).

    A log-probability of -inf counts as its limit, 0 log 0 = 0.
    """
    logs = log_probs.astype(np.float64)
    probs = np.exp(logs)
    terms = probs * np.where(probs > 0, logs, 0.0)
    confidence: NDArray[np.float64] = 1 + terms.sum(-1) / np.log(logs.shape[-1])
    return confidence


def vote(counts: Floats) -> NDArray[np.float64]:
    """`max_c #{k' <= k : argmax yhat_k' = c} / k` from vote counts; (A, C) in, (A,) out."""
    share: NDArray[np.float64] = counts.max(-1) / counts.sum(-1)
    return share
