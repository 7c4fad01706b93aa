"""EENet (Ilhan et al., "Adaptive Deep Neural Network Inference Optimization", WACV 2024)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from scheduler.confidence import (
    entropy_confidence,
    finite_log_probs,
    logistic,
    vote,
)
from scheduler.npz import read_arrays
from scheduler.pixels import pixel_histories, pixels_of, row_histories, row_means
from scheduler.policy import ExitScores, PolicyKind, imported_on_call, score_all
from scheduler.thresholds import (
    ThresholdPolicy,
    ThresholdTable,
    load_table,
    table_arrays,
    table_parameters,
)

Array = NDArray[np.float64]

NUM_CONFIDENCES = 3  # max probability, entropy, vote


@dataclass(frozen=True)
class ExitScorer:
    """The linear exit scores q_k = psi_k . [yhat_k, a_k, b_k] (section 3.2).

    Rows are ranked and compared by this unclamped score. Only as b_k, the input of later exits, is
    it clamped to [0, 1], because there it is an estimate of P(correct).

    Attributes:
        weights: psi, one array (C + 3 + k,) per exit: class probabilities, the three confidences
            (max probability, entropy, vote), the scores of the exits before.
        clamp_history: Whether b_k is clamped. False reproduces the published evaluation, which
            does not clamp.
    """

    weights: tuple[Array, ...]
    clamp_history: bool = True

    def __post_init__(self) -> None:
        widths = [len(self.weights[0]) + k for k in range(len(self.weights))]
        if [each.shape for each in self.weights] != [(width,) for width in widths]:
            raise ValueError("score weights must be vectors, each one longer than the one before")

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.weights[0]) - NUM_CONFIDENCES

    def start(self, rows: int) -> Array:
        """Return a history (rows, C + K) of no votes and no scores."""
        return np.zeros((rows, self.num_classes + len(self.weights)))

    def features(
        self, exit: int, log_probs: NDArray[np.floating], history: Array
    ) -> tuple[Array, Array]:
        """Return the inputs [yhat_k, a_k, b_k] (A, C + 3 + k), and the history with the new vote.

        The history is per pixel, (A * P, C + K): its own votes and its row's scores.
        """
        num_classes, pixels = self.num_classes, pixels_of(log_probs)
        probs = np.exp(pixels, dtype=np.float64)
        history = pixel_histories(history, pixels, num_classes + len(self.weights)).copy()
        history[np.arange(len(pixels)), pixels.argmax(-1)] += 1
        inputs = np.empty((len(pixels), num_classes + NUM_CONFIDENCES + exit))
        inputs[:, :num_classes] = probs
        inputs[:, num_classes] = probs.max(-1)
        inputs[:, num_classes + 1] = entropy_confidence(pixels, probs)
        inputs[:, num_classes + 2] = vote(history[:, :num_classes], exit + 1)
        inputs[:, num_classes + 3 :] = history[:, num_classes : num_classes + exit]
        return row_means(inputs, len(log_probs)), history

    def score(self, exit: int, log_probs: NDArray[np.floating], history: Array) -> ExitScores:
        """Return the unclamped scores (A,) at an exit and the history with them added."""
        return self.score_features(exit, *self.features(exit, log_probs, history))

    def score_features(self, exit: int, inputs: Array, history: Array) -> ExitScores:
        """Score the result of `features`, whose history is changed in place."""
        # No matrix product: its rounding depends on the batch, and thresholds equal scores of rows.
        scores = (inputs * self.weights[exit]).sum(1)
        kept = scores.clip(0, 1) if self.clamp_history else scores
        history = row_histories(history, len(scores))
        history[:, self.num_classes + exit :: self.num_classes + len(self.weights)] = kept[:, None]
        return ExitScores(scores, history, np.empty((len(scores), 0)))


@dataclass(frozen=True)
class PublishedAssigner:
    """The published exit assignment h_k: linear, sigmoid, linear, sigmoid, on inputs without vote.

    Attributes:
        layers: Per exit (weight (H, C + 2 + k), bias (H,), weight (1, H), bias (1,)).
    """

    layers: tuple[tuple[Array, Array, Array, Array], ...]

    def __call__(self, features: list[Array]) -> Array:
        """Return the softmax over exits of h, (N, K), from each exit's features (N, C + 2 + k)."""
        raw = [
            logistic(logistic(inputs @ first.T + first_bias) @ second.T + second_bias)[:, 0]
            for inputs, (first, first_bias, second, second_bias) in zip(
                features, self.layers, strict=True
            )
        ]
        weights = np.exp(np.stack(raw, 1))
        shares: Array = weights / weights.sum(1, keepdims=True)
        return shares


@dataclass(frozen=True)
class EENetPolicy(ThresholdPolicy):
    """Learned exit scores with thresholds from a learned exit distribution per budget.

    Attributes:
        scorer: g, the exit scores.
        assigner: h as published, if the policy was read from published weights.
    """

    kind: ClassVar[str] = "eenet"
    scorer: ExitScorer
    assigner: PublishedAssigner | None = None

    def start(self, rows: int) -> Array:
        """Return a history of no votes and no scores."""
        return self.scorer.start(rows)

    def score(self, exit: int, log_probs: NDArray[np.floating], history: Array) -> ExitScores:
        """Return the unclamped linear score of each row."""
        return self.scorer.score(exit, log_probs, history)

    def scores(
        self, probs: NDArray[np.floating], history: Literal["clamped", "raw"] = "clamped"
    ) -> Array:
        """Return the unclamped linear scores of recorded probabilities.

        Args:
            probs: Class probabilities, (K, N, C) or (K, N, P, C).
            history: Whether earlier scores enter clamped to [0, 1], as in training and serving, or
                raw, as in the published evaluation.

        Returns:
            (N, K).

        Raises:
            ValueError: If the shape does not fit the weights or `history` is neither.
        """
        if history not in ("clamped", "raw"):
            raise ValueError(f"history is {history!r}; give 'clamped' or 'raw'")
        scorer = replace(self.scorer, clamp_history=history == "clamped")
        return score_all(replace(self, scorer=scorer), self._checked(probs))

    def assignment(self, probs: NDArray[np.floating]) -> Array:
        """Return the published exit assignment r of recorded probabilities, (N, K).

        Args:
            probs: Class probabilities, (K, N, C) or (K, N, P, C).

        Raises:
            ValueError: If the policy has no assignment weights, or the shape does not fit.
        """
        if self.assigner is None:
            raise ValueError(
                "this policy has no assignment weights; they come from published files and are "
                "dropped once thresholds are fitted"
            )
        log_probs, num_classes = self._checked(probs), self.scorer.num_classes
        history, features = self.start(log_probs.shape[1]), []
        for exit, rows in enumerate(log_probs):
            inputs, history = self.scorer.features(exit, rows, history)
            features.append(np.delete(inputs, num_classes + NUM_CONFIDENCES - 1, axis=1))
            history = self.scorer.score_features(exit, inputs, history).history
        return self.assigner(features)

    def _checked(self, probs: NDArray[np.floating]) -> Array:
        expected = (self.num_exits, self.scorer.num_classes)
        if probs.ndim not in (3, 4) or (probs.shape[0], probs.shape[-1]) != expected:
            raise ValueError(
                f"probs has the shape {probs.shape}, but the scheduler has {expected[0]} exits and "
                f"{expected[1]} classes; give (K, N, C) = ({expected[0]}, N, {expected[1]})"
            )
        return finite_log_probs(probs)


def _arrays(policy: EENetPolicy) -> dict[str, Array]:
    weights = {f"score_weights_{k}": psi for k, psi in enumerate(policy.scorer.weights)}
    return table_arrays(policy) | weights


def _load(arrays: Mapping[str, Array], num_exits: int) -> EENetPolicy:
    weights = tuple(arrays[f"score_weights_{k}"] for k in range(num_exits))
    return EENetPolicy(load_table(arrays), ExitScorer(weights))


EENET = PolicyKind(
    "eenet",
    "a learned linear score reaches its threshold (Ilhan et al., WACV 2024)",
    "#d55e00",
    fit=imported_on_call("scheduler.fitting.eenet", "fit"),
    parameters=table_parameters,
    arrays=_arrays,
    load=_load,
    parameter_is_budget=True,
)


def load_published_scheduler(path: str | Path) -> EENetPolicy:
    """Read a fitted scheduler of the published EENet code from an npz.

    Its keys are `exit{k}.score.prediction.weight (1, C)`, `exit{k}.score.confidence.weight
    (2 + k,)` (max probability, entropy, earlier scores; the published code leaves the vote out) and
    `exit{k}.assign.{0,2}.{weight,bias}`; other keys are ignored. The policy scores and assigns.
    Only the last exit fires until `fit_scheduler` fits thresholds to a calibration set.

    Args:
        path: The npz.

    Raises:
        ValueError: If it cannot be read, or weights are missing or their shapes disagree.
    """
    published = _published_arrays(path)
    found = [int(match[1]) for key in published if (match := re.match(r"exit(\d+)\.", key))]
    num_exits = max(found, default=-1) + 1
    if num_exits < 2:
        raise ValueError(
            f"{path} holds weights of {num_exits} exits; give an npz with "
            f"exit0.score.prediction.weight, exit1.score.prediction.weight, ..."
        )
    num_classes = _required(published, "exit0.score.prediction.weight", path).size
    weights, layers = [], []
    for k in range(num_exits):
        width = num_classes + 2 + k
        prediction = _weight(published, f"exit{k}.score.prediction.weight", (num_classes,), path)
        confidence = _weight(published, f"exit{k}.score.confidence.weight", (2 + k,), path)
        weights.append(np.concatenate([prediction, confidence[:2], [0.0], confidence[2:]]))
        hidden = _required(published, f"exit{k}.assign.0.bias", path).size
        layers.append(
            (
                _weight(published, f"exit{k}.assign.0.weight", (hidden, width), path),
                _weight(published, f"exit{k}.assign.0.bias", (hidden,), path),
                _weight(published, f"exit{k}.assign.2.weight", (1, hidden), path),
                _weight(published, f"exit{k}.assign.2.bias", (1,), path),
            )
        )
    return EENetPolicy(
        ThresholdTable.closed(num_exits),
        ExitScorer(tuple(weights)),
        PublishedAssigner(tuple(layers)),
    )


def _published_arrays(path: str | Path) -> dict[str, Array]:
    arrays = read_arrays(path, lambda key: key.startswith("exit"))
    try:
        return {key: array.astype(np.float64) for key, array in arrays.items()}
    except ValueError as error:
        raise ValueError(
            f"{path} is not an npz of plain arrays, or damaged; write it with numpy.savez"
        ) from error


def _required(arrays: Mapping[str, Array], key: str, path: str | Path) -> Array:
    if key not in arrays:
        raise ValueError(f"{path} lacks {key}; export the score and assign weights of every exit")
    return arrays[key]


def _weight(
    arrays: Mapping[str, Array], key: str, shape: tuple[int, ...], path: str | Path
) -> Array:
    """Return one weight array in its expected shape."""
    array = _required(arrays, key, path)
    if array.size != np.prod(shape) or not np.isfinite(array).all():
        raise ValueError(
            f"{path}: {key} must hold finite values of shape {shape}, but has the shape "
            f"{array.shape} or values that are not finite; export the weights again"
        )
    return array.reshape(shape)
