"""Rows that may have several of C labels: probabilities, thresholds and the F1 score.

To policies such a row is like an image of C pixels with two classes each, "has it not" and "has
it". The log-probabilities of an exit are relative to its thresholds: they are even where the
probability of a label is its threshold, so that the likelier class says whether the row has it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEAST, MOST = 0.05, 0.95  # bounds of a threshold, which few rows would else push to an end
NEUTRAL = 0.5


class F1(NamedTuple):
    """F1 scores of label sets.

    Attributes:
        micro: Over all labels of all rows.
        macro: The mean over labels; a label that no row has and none gets counts as 1.
    """

    micro: float
    macro: float


def label_probabilities(log_probs: NDArray[np.floating], thresholds: Array) -> Array:
    """Return the probability of each label, (..., C).

    Args:
        log_probs: Of an exit, relative to its thresholds, (..., C, 2).
        thresholds: Of that exit, (C,).
    """
    shift = np.log(thresholds) - np.log1p(-thresholds)
    odds = log_probs[..., 1].astype(np.float64) - log_probs[..., 0] + shift
    probs: Array = 1 / (1 + np.exp(-np.clip(odds, -700, 700)))
    return probs


def fit_thresholds(probs: Array, labels: NDArray[np.int64]) -> Array:
    """Choose for each label the threshold with the best F1 on some rows, (C,).

    Thresholds lie between two observed probabilities. A label that all rows or none have gets 0.5.

    Args:
        probs: Probability of each label, (N, C).
        labels: 1 where a row has a label, else 0, (N, C).
    """
    return np.array(
        [_best_threshold(p, y) for p, y in zip(probs.T, labels.T, strict=True)], np.float64
    )


def _best_threshold(probs: Array, labels: NDArray[np.int64]) -> float:
    positive = int(labels.sum())
    if positive in (0, len(labels)):
        return NEUTRAL
    order = np.argsort(-probs, kind="stable")
    ranked = probs[order]
    hits = labels[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(labels) + 1) + positive)
    between = (ranked + np.append(ranked[1:], 0.0)) / 2
    f1[np.append(ranked[1:] == ranked[:-1], False)] = -1.0  # ties cannot be told apart
    return float(np.clip(between[f1.argmax()], LEAST, MOST))


def f1_scores(answers: NDArray[np.integer], labels: NDArray[np.integer]) -> F1:
    """Return the F1 scores of answers, both (N, C) of 0 and 1."""
    hits = (answers & labels).sum(0).astype(np.float64)
    total = (answers.sum(0) + labels.sum(0)).astype(np.float64)
    each = np.where(total > 0, 2 * hits / np.maximum(total, 1), 1.0)
    micro = 2 * hits.sum() / total.sum() if total.sum() else 1.0
    return F1(float(micro), float(each.mean()))
