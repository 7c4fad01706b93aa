from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.backend import HeadOutput
from profiling.calibration import Predictions, Recorded, load_recorded, record, save_recorded


class AddingBackend:
    """Every stage adds 1; every head takes the sum as the logit of class 1 against 0."""

    num_exits = 3

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run_stage(self, stage: int, state: NDArray[np.float32]) -> NDArray[np.float32]:
        self.batches.append(len(state))
        return state + 1

    def run_head(self, exit: int, state: NDArray[np.float32]) -> HeadOutput:
        logits = np.stack([np.zeros(len(state)), state[:, 0]], 1).astype(np.float32)
        return HeadOutput(logits, logits - np.logaddexp(0, state).astype(np.float32))


def predictions(rows: int, seed: int) -> Predictions:
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.dirichlet(np.ones(4), (3, rows))).astype(np.float16)
    return Predictions(log_probs, rng.integers(0, 4, rows))


@pytest.mark.parametrize("rows", [1, 100, 101, 250])
def test_every_row_is_recorded_at_every_exit_in_order(rows: int) -> None:
    inputs = np.linspace(-8, 4, rows, dtype=np.float32)[:, None]
    labels = np.arange(rows) % 2
    recorded = record(AddingBackend(), inputs, labels)
    logit = inputs[:, 0] + np.arange(1, 4)[:, None]  # (K, N)
    assert recorded.log_probs.shape == (3, rows, 2)
    assert recorded.log_probs[..., 1] == pytest.approx(logit - np.logaddexp(0, logit), rel=2e-3)
    assert np.array_equal(recorded.labels, labels)


def test_inputs_go_through_in_small_batches() -> None:
    backend = AddingBackend()
    record(backend, np.zeros((250, 1), np.float32), np.zeros(250, np.int64))
    assert max(backend.batches) <= 100
    assert sum(backend.batches) == 3 * 250


def test_predictions_tell_nearly_certain_rows_apart() -> None:
    inputs = np.array([[10.0], [10.5]], np.float32)
    kept = record(AddingBackend(), inputs, np.zeros(2, np.int64)).log_probs
    assert kept.dtype == np.float16
    assert (kept[:, 0, 1] < kept[:, 1, 1]).all()


def test_correct_compares_each_exits_answer_with_the_label() -> None:
    probs = np.array([[[0.9, 0.1], [0.9, 0.1]], [[0.2, 0.8], [0.7, 0.3]]])
    known = Predictions(np.log(probs).astype(np.float16), np.array([1, 0]))
    assert known.correct.tolist() == [[False, True], [True, True]]


def test_recorded_sets_come_back_as_they_were_saved(tmp_path: Path) -> None:
    saved = Recorded(predictions(20, seed=0), predictions(30, seed=1))
    save_recorded(saved, tmp_path / "recorded.npz")
    loaded = load_recorded(tmp_path / "recorded.npz")
    for before, after in zip(saved, loaded, strict=True):
        assert np.array_equal(before.log_probs, after.log_probs)
        assert after.log_probs.dtype == np.float16
        assert np.array_equal(before.labels, after.labels)
        assert after.labels.dtype == np.int64
