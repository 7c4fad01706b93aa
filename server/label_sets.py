"""The JSON fields of a prediction whose sample may have several labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.label_sets import label_probabilities
from server.engine.request import ExitTrace, InferenceRequest, Prediction
from server.hot_route import latency_fields
from server.schemas import shown_threshold

Thresholds = NDArray[np.float64]


def label_set_fields(
    served: InferenceRequest, classes: Sequence[str], thresholds: Thresholds, top_k: int
) -> dict[str, Any]:
    """Return the fields that every prediction of labels has.

    Args:
        served: An answered request.
        classes: Names of the C classes.
        thresholds: Of each exit and class, (K, C).
        top_k: Number of classes to list, whether the sample has them or not.
    """
    prediction = served.result
    assert isinstance(prediction, Prediction), "only answered requests have predictions"
    log_probs = prediction.batch_output.log_probs[prediction.place]
    ranking = _ranked(log_probs, classes, thresholds[prediction.exit])
    return {
        "labels": _has(ranking, log_probs),
        "confidence": _confidence(log_probs),
        "exit": prediction.exit,
        "num_exits": len(thresholds),
        "top_k": ranking[:top_k],
        "latency_ms": latency_fields(served),
    }


def label_set_options(
    served: InferenceRequest, classes: Sequence[str], thresholds: Thresholds
) -> dict[str, Any]:
    """Return the fields that appear only where they apply: trace and marks."""
    prediction = served.result
    assert isinstance(prediction, Prediction), "only answered requests have predictions"
    fields: dict[str, Any] = {}
    if prediction.trace is not None:
        fields["trace"] = [
            label_set_trace(entry, classes, thresholds) for entry in prediction.trace
        ]
    if served.truncated:
        fields["truncated"] = True
    if prediction.late:
        fields["deadline_exceeded"] = True
    return fields


def label_set_trace(
    entry: ExitTrace, classes: Sequence[str], thresholds: Thresholds
) -> dict[str, Any]:
    """Return the JSON fields of one exit in a trace."""
    ranking = _ranked(entry.log_probs, classes, thresholds[entry.exit])
    return {
        "exit": entry.exit,
        "labels": _has(ranking, entry.log_probs),
        "confidence": _confidence(entry.log_probs),
        "score": entry.score,
        "threshold": shown_threshold(entry.threshold, last=entry.exit == len(thresholds) - 1),
        "elapsed_ms": round(entry.elapsed_ms, 3),
    }


def _ranked(
    log_probs: NDArray[np.floating], classes: Sequence[str], thresholds: Thresholds
) -> list[dict[str, Any]]:
    """List all classes by their probability, the likeliest first."""
    probs = label_probabilities(log_probs, thresholds)
    order = np.argsort(-probs, kind="stable").tolist()
    return [{"label": classes[c], "class_id": c, "probability": float(probs[c])} for c in order]


def _has(ranking: list[dict[str, Any]], log_probs: NDArray[np.floating]) -> list[dict[str, Any]]:
    """Leave the classes that the sample has: those above their thresholds."""
    marks = log_probs.argmax(-1)
    return [each for each in ranking if marks[each["class_id"]]]


def _confidence(log_probs: NDArray[np.floating]) -> float:
    """Return the mean over the classes of the probability that it is rightly set or not set."""
    return float(np.exp(log_probs.max(-1)).mean())
