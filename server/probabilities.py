"""From log-probabilities to what an answer says."""

import numpy as np
from numpy.typing import NDArray


def probabilities(log_probs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the classes (C,); of a segmentation the mean over its pixels (P, C), a class's share."""
    probs: NDArray[np.float32] = np.exp(log_probs)
    return probs if probs.ndim == 1 else probs.mean(0)
