"""Recorded predictions of every exit: the only input for fitting and evaluating a scheduler."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.backend import StageBackend, State
from profiling.axes import misplaced_axes
from scheduler.combiner import Combiner
from scheduler.confidence import SMALLEST_LOG, finite_log_probs
from scheduler.npz import read_arrays
from scheduler.pixels import correct_share

RECORD_ROWS = 100
SUM_TOLERANCE = 0.005


class Predictions(NamedTuple):
    """Log-probabilities (K, N, C) of every exit and the true labels (N,).

    For segmentation (K, N, P, C) and (N, P), on a grid of P pixels. Bundles store float16
    logarithms, because float16 probabilities tie at 1.0 where single precision distinguishes them.
    """

    log_probs: NDArray[np.floating]
    labels: NDArray[np.int64]

    @property
    def correct(self) -> NDArray[np.float64]:
        """Whether each exit is right, 0 or 1, (N, K); for segmentation a share of pixels."""
        return correct_share(self.log_probs, self.labels)

    def combined(self, combiner: Combiner) -> "Predictions":
        """Return the answers that a server gives, from the outputs of the heads."""
        return self._replace(log_probs=combiner.combine_all(self.log_probs))


class Recorded(NamedTuple):
    """The disjoint sets of rows in a bundle.

    Attributes:
        calibration: Rows that schedulers are fitted to.
        certification: Rows on which nothing was fitted, chosen or reported, kept for certificates;
            None if none were held out.
        test: Rows on which accuracy is reported.
    """

    calibration: Predictions
    certification: Predictions | None
    test: Predictions


def record(backend: StageBackend, inputs: State, labels: NDArray[np.int64]) -> Predictions:
    """Run N rows through every exit; for segmentation the labels are (N, P)."""
    parts = []
    for start in range(0, len(labels), RECORD_ROWS):
        state, rows = tuple(array[start : start + RECORD_ROWS] for array in inputs), []
        for k in range(backend.num_exits):
            state = backend.run_stage(k, state)
            rows.append(backend.run_head(k, state).log_probs)
        parts.append(np.stack(rows))
    log_probs = np.concatenate(parts, 1).clip(SMALLEST_LOG, 0.0)
    return Predictions(log_probs.astype(np.float16), labels)


def save_recorded(recorded: Recorded, path: Path) -> None:
    """Write all sets into one npz."""
    arrays: dict[str, Any] = {}
    for part, predictions in recorded._asdict().items():
        if predictions is not None:
            arrays[f"{part}_log_probs"] = predictions.log_probs
            arrays[f"{part}_labels"] = predictions.labels.astype(np.int32)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def load_recorded(path: Path) -> Recorded:
    """Read all sets from a file of `save_recorded`; older ones have no certification rows."""
    with np.load(path, allow_pickle=False) as arrays:

        def read(part: str) -> Predictions:
            labels = arrays[f"{part}_labels"].astype(np.int64)
            return Predictions(arrays[f"{part}_log_probs"], labels)

        has_certification = "certification_labels" in arrays
        certification = read("certification") if has_certification else None
        return Recorded(read("calibration"), certification, read("test"))


def load_predictions(path: Path) -> Recorded:
    """Read predictions made by any framework: probabilities of every exit and true labels.

    Args:
        path: An npz with `calibration_probs (K, N, C)`, `calibration_labels (N,)`, `test_probs
            (K, M, C)`, `test_labels (M,)`; probabilities in half, single or double precision. Rows
            whose sum differs from 1 by at most 0.005 are scaled to 1. Other arrays, such as
            `certification_probs` and `certification_labels`, are not read: see
            `load_certified_predictions`.

    Raises:
        ValueError: If an array is missing or invalid; the message names the array, the index and
            the remedy.
    """
    calibration, test = _read_parts(path, ("calibration", "test"))
    return Recorded(calibration, None, test)


def load_calibration(path: Path) -> tuple[Predictions, Predictions | None]:
    """Read the calibration rows of a file, and its test rows if it has any.

    Args:
        path: As for `load_predictions`; `test_probs` and `test_labels` may both be missing.

    Raises:
        ValueError: If an array is missing or invalid.
    """
    tests = ("test_probs", "test_labels")
    has_test = bool(read_arrays(path, tests.__contains__))
    parts = _read_parts(path, ("calibration", "test") if has_test else ("calibration",))
    return parts[0], parts[1] if has_test else None


def load_certified_predictions(path: Path) -> Recorded:
    """Read predictions as `load_predictions` does, with the rows that certify a policy.

    Args:
        path: As there, with `certification_probs (K, L, C)` and `certification_labels (L,)`.

    Raises:
        ValueError: If an array is missing or invalid.
    """
    return Recorded(*_read_parts(path, ("calibration", "certification", "test")))


def _read_parts(path: Path, parts: Sequence[str]) -> list[Predictions]:
    """Read and check the probabilities and labels of several sets of rows in an npz."""
    names = [f"{part}_{what}" for part in parts for what in ("probs", "labels")]
    arrays = read_arrays(path, names.__contains__)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"{path} has no array {missing[0]}; it must hold {', '.join(names)}")
    for part in parts:
        probs, labels = arrays[f"{part}_probs"], arrays[f"{part}_labels"]
        if misplaced := misplaced_axes(probs, labels):
            raise ValueError(f"{part}_probs has the shape {probs.shape}, and {misplaced}")
    first, *others = read = [
        Predictions(
            _checked_log_probs(f"{part}_probs", arrays[f"{part}_probs"]),
            _checked_labels(
                f"{part}_labels", arrays[f"{part}_labels"], arrays[f"{part}_probs"].shape
            ),
        )
        for part in parts
    ]
    for part, each in zip(parts[1:], others, strict=True):
        if each.log_probs.shape[::2] != first.log_probs.shape[::2]:
            raise ValueError(
                f"{parts[0]}_probs has the shape {first.log_probs.shape}, {part}_probs "
                f"{each.log_probs.shape}; exits and classes must be the same in both"
            )
    return read


def _checked_log_probs(name: str, probs: NDArray[np.floating]) -> NDArray[np.float32]:
    """Check probabilities (K, N, C), scale each row to a sum of 1 and return finite logarithms."""
    if probs.ndim != 3 or probs.dtype.kind != "f" or 0 in probs.shape:
        raise ValueError(
            f"{name} has the shape {probs.shape} and the type {probs.dtype}; give floating-point "
            f"probabilities (exits, rows, classes)"
        )
    parts = []
    # One exit at a time: with many classes the whole array takes gigabytes.
    for exit, shown in enumerate(probs):
        rows = shown.astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(rows).all(1) | (rows < 0).any(1))
        if len(bad):
            raise ValueError(
                f"{name}[{exit}, {bad[0]}] holds NaN, infinite or negative values; give "
                f"probabilities, or remove that row"
            )
        sums = rows.sum(1)
        # Allow for the rounding of C numbers in the file's precision.
        rounding = 1e-3 if shown.dtype == np.float16 else 1e-6
        off = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE + rounding)
        if len(off):
            raise ValueError(
                f"{name}[{exit}, {off[0]}] sums to {sums[off[0]]:.6g}, more than "
                f"{SUM_TOLERANCE} away from 1; give the softmax of the logits"
            )
        parts.append(finite_log_probs(rows / sums[:, None]).astype(np.float32))
    return np.stack(parts)


def _checked_labels(
    name: str, labels: NDArray[np.integer], probs_shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """Check the labels (N,) that belong to probabilities (K, N, C)."""
    _, num_rows, num_classes = probs_shape
    if labels.shape != (num_rows,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has the shape {labels.shape} and the type {labels.dtype}; give one whole "
            f"number for each of the {num_rows} rows"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise ValueError(
            f"{name}[{wrong[0]}] is {labels[wrong[0]]}, outside the classes 0 to "
            f"{num_classes - 1}; correct the label, or give probabilities of all classes"
        )
    return labels.astype(np.int64)
