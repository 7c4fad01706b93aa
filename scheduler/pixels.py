"""Rows of P pixels, as a segmentation has them: what is known of a row is the mean over its pixels.

A row of a classification is one pixel, and passes through here untouched.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Array = NDArray[np.float64]


def pixels_of(log_probs: Floats) -> Floats:
    """Pixels as rows of their own: (A, C) as it is, (A, P, C) as (A * P, C)."""
    return log_probs if log_probs.ndim == 2 else log_probs.reshape(-1, log_probs.shape[-1])


def pixel_histories(history: Array, pixels: Floats, width: int) -> Array:
    """The history of each pixel.

    Args:
        history: Of rows, their pixels' one after the other, (A, P * H); at the start (A, H), the
            same for all pixels of a row.
        pixels: From `pixels_of`, (A * P, C).
        width: H, what one pixel needs.

    Returns:
        (A * P, H).
    """
    histories = history if history.shape[1] == width else history.reshape(-1, width)
    if len(histories) == len(pixels):
        return histories
    return histories.repeat(len(pixels) // len(histories), 0)


def row_histories(histories: Array, num_rows: int) -> Array:
    """The inverse of `pixel_histories`: (A * P, H) in, (A, P * H) out."""
    return histories if len(histories) == num_rows else histories.reshape(num_rows, -1)


def row_means(values: Array, num_rows: int) -> Array:
    """The mean over each row's pixels; (A * P, ...) in, (A, ...) out."""
    if len(values) == num_rows:
        return values
    means: Array = values.reshape(num_rows, len(values) // num_rows, *values.shape[1:]).mean(1)
    return means


def correct_share(log_probs: Floats, labels: NDArray[np.int64]) -> Array:
    """How much of each row each exit has right, (N, K): 0 or 1, of P pixels their share.

    Args:
        log_probs: (K, N, C), or (K, N, P, C).
        labels: (N,), or (N, P).
    """
    right = log_probs.argmax(-1) == labels
    shares: Array = right.reshape(*right.shape[:2], -1).mean(2).T
    return shares
