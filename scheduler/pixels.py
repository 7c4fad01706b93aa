"""Rows of P pixels, as in a segmentation: the value of a row is the mean over its pixels.

A row of a classification counts as one pixel; these functions return it unchanged.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Array = NDArray[np.float64]


def pixels_of(log_probs: Floats) -> Floats:
    """Make every pixel a row of its own: (A, C) unchanged, (A, P, C) to (A * P, C)."""
    return log_probs if log_probs.ndim == 2 else log_probs.reshape(-1, log_probs.shape[-1])


def pixel_histories(history: Array, pixels: Floats, width: int) -> Array:
    """Split the history of each row into those of its pixels.

    Args:
        history: The pixels' histories one after the other in each row, (A, P * H); at the start
            (A, H), the same for all pixels of a row.
        pixels: From `pixels_of`, (A * P, C).
        width: H, the numbers per pixel.

    Returns:
        (A * P, H).
    """
    histories = history if history.shape[1] == width else history.reshape(-1, width)
    if len(histories) == len(pixels):
        return histories
    return histories.repeat(len(pixels) // len(histories), 0)


def row_histories(histories: Array, num_rows: int) -> Array:
    """Undo `pixel_histories`: (A * P, H) to (A, P * H)."""
    return histories if len(histories) == num_rows else histories.reshape(num_rows, -1)


def row_means(values: Array, num_rows: int) -> Array:
    """Return the mean over each row's pixels; (A * P, ...) to (A, ...)."""
    if len(values) == num_rows:
        return values
    means: Array = values.reshape(num_rows, len(values) // num_rows, *values.shape[1:]).mean(1)
    return means


def correct_share(log_probs: Floats, labels: NDArray[np.int64]) -> Array:
    """Return the share of each row that each exit has right, (N, K): 0 or 1 without pixels.

    Args:
        log_probs: (K, N, C), or (K, N, P, C).
        labels: (N,), or (N, P).
    """
    right = log_probs.argmax(-1) == labels
    shares: Array = right.reshape(*right.shape[:2], -1).mean(2).T
    return shares
