"""Recorded predictions of every exit for the same inputs, clean and corrupted: real drift."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.backend import StageBackend
from models.data.dataset import Split
from models.preprocess import ImagePreprocessor, TextPreprocessor
from profiling.calibration import Predictions
from profiling.latency import measure_latency
from profiling.loadtest.variants import InputVariant
from profiling.recording import record_split
from scheduler.npz import read_arrays

PASSES, WARM_UP = 5, 5


class LengthCosts(NamedTuple):
    """Cost of a text of each length: tokens (L,), ms until each exit (K, L)."""

    lengths: NDArray[np.int64]
    costs_ms: NDArray[np.float64]


class DriftSet(NamedTuple):
    """Predictions for N inputs in V variants; row n is the same input in all of them.

    Attributes:
        variants: Their names, (V,); the first is the clean one.
        log_probs: Predictions of every exit, (V, K, N, C), float16.
        labels: True classes, (N,).
        tokens: Length that each text is padded to, (V, N); None for images.
        length_costs: Costs of texts by length, if they were measured.
    """

    variants: tuple[str, ...]
    log_probs: NDArray[np.float16]
    labels: NDArray[np.int64]
    tokens: NDArray[np.int64] | None = None
    length_costs: LengthCosts | None = None

    def predictions(self, variant: str) -> Predictions:
        """Predictions for all inputs in one variant.

        Raises:
            ValueError: If the variant was not recorded.
        """
        if variant not in self.variants:
            raise ValueError(
                f"the variant {variant!r} was not recorded; give one of {', '.join(self.variants)}"
            )
        return Predictions(self.log_probs[self.variants.index(variant)], self.labels)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Accuracy of each exit on each variant, (V, K)."""
        right = self.log_probs.argmax(-1) == self.labels  # (V, K, N)
        shares: NDArray[np.float64] = right.mean(-1)
        return shares


def record_images(
    backend: StageBackend,
    preprocess: ImagePreprocessor,
    files: Sequence[bytes],
    labels: NDArray[np.int64],
    variants: Sequence[InputVariant],
    seed: int,
) -> DriftSet:
    """Run N image files through every exit in each variant."""
    log_probs = []
    for variant in variants:
        changed = variant.of_images(files, np.random.default_rng(seed))
        decoded = np.stack([preprocess.decode(file) for file in changed])  # (N, H, W, 3)
        log_probs.append(record_split(backend, preprocess, Split(decoded, labels)).log_probs)
    return DriftSet(_names(variants), _stacked(log_probs), labels)


def record_texts(
    backend: StageBackend,
    preprocess: TextPreprocessor,
    texts: Sequence[str],
    labels: NDArray[np.int64],
    variants: Sequence[InputVariant],
    seed: int,
) -> DriftSet:
    """Run N texts through every exit in each variant."""
    log_probs, tokens = [], []
    for variant in variants:
        changed = variant.of_texts(texts, labels.tolist(), np.random.default_rng(seed))
        tokens.append([preprocess(text).state[0].shape[1] for text in changed])
        log_probs.append(record_split(backend, preprocess, Split(changed, labels)).log_probs)
    return DriftSet(_names(variants), _stacked(log_probs), labels, np.array(tokens))


def measure_lengths(
    backend: StageBackend, preprocess: TextPreprocessor, passes: int = PASSES, repeats: int = 20
) -> LengthCosts:
    """Time one text of every length that the preprocessor makes, until each exit.

    Each pass times all lengths, so that a slow spell of the machine affects one pass and not one
    length.
    """
    step, most = preprocess.length_step, preprocess.max_tokens
    lengths = np.unique(np.minimum(np.arange(step, most + step, step), most))
    costs_ms = [
        [_length_costs(backend, preprocess.pad_id, length, repeats) for length in lengths]
        for _ in range(passes)
    ]  # (passes, L, K)
    return LengthCosts(lengths, np.median(costs_ms, 0).T)


def _length_costs(
    backend: StageBackend, pad_id: int, length: int, repeats: int
) -> NDArray[np.float64]:
    """Milliseconds until each exit, (K,)."""
    ids = np.full((1, length), pad_id, np.int64)
    example = (ids, np.ones_like(ids))
    profile = measure_latency(backend, example, batch_sizes=(1,), warm_up=WARM_UP, repeats=repeats)
    return profile.costs_ms


def save_drift_set(drift: DriftSet, path: Path) -> None:
    """Write one npz file."""
    arrays: dict[str, Any] = {
        "forms": np.array(drift.variants),
        "log_probs": drift.log_probs,
        "labels": drift.labels.astype(np.int32),
    }
    if drift.tokens is not None:
        arrays["tokens"] = drift.tokens.astype(np.int32)
    if drift.length_costs is not None:
        arrays |= drift.length_costs._asdict()
    np.savez_compressed(path, allow_pickle=False, **arrays)


def load_drift_set(path: Path) -> DriftSet:
    """Read what `save_drift_set` wrote.

    Raises:
        ValueError: If the file cannot be read or is not a drift set.
    """
    arrays = read_arrays(path, lambda _: True)
    if missing := {"forms", "log_probs", "labels"} - arrays.keys():
        raise ValueError(
            f"{path} lacks {min(missing)!r}; make it with python -m benchmarks.record_drift"
        )
    costs = None
    if "costs_ms" in arrays:
        costs = LengthCosts(arrays["lengths"].astype(np.int64), arrays["costs_ms"])
    return DriftSet(
        tuple(arrays["forms"].tolist()),
        arrays["log_probs"],
        arrays["labels"].astype(np.int64),
        arrays["tokens"].astype(np.int64) if "tokens" in arrays else None,
        costs,
    )


def _names(variants: Sequence[InputVariant]) -> tuple[str, ...]:
    return tuple(variant.name for variant in variants)


def _stacked(log_probs: Sequence[NDArray[np.floating]]) -> NDArray[np.float16]:
    return np.stack(log_probs).astype(np.float16)
