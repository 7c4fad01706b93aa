import gc
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.backend import HeadOutput, State, gather_arrays
from profiling.calibration import (
    Predictions,
    Recorded,
    load_predictions,
    load_recorded,
    record,
    save_recorded,
)


class AddingBackend:
    """Every stage adds 1; every head takes the sum as the logit of class 1 against 0.

    Of inputs with several columns each is a pixel. Further arrays go along as they are.
    """

    num_exits = 3
    device = "fake"
    gather = staticmethod(gather_arrays)
    synchronize = staticmethod(lambda: None)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run_stage(self, stage: int, state: State) -> State:
        sums, *rest = state
        assert {len(array) for array in state} == {len(sums)}
        self.batches.append(len(sums))
        return (sums + 1, *rest)

    def run_head(self, exit: int, state: State) -> HeadOutput:
        sums = state[0] if state[0].shape[1] > 1 else state[0][:, 0]  # (A, P) or (A,)
        logits = np.stack([np.zeros_like(sums), sums], -1).astype(np.float32)
        return HeadOutput(logits, logits - np.logaddexp(0, sums)[..., None].astype(np.float32))


def predictions(rows: int, seed: int) -> Predictions:
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.dirichlet(np.ones(4), (3, rows))).astype(np.float16)
    return Predictions(log_probs, rng.integers(0, 4, rows))


@pytest.mark.parametrize("rows", [1, 100, 101, 250])
def test_every_row_is_recorded_at_every_exit_in_order(rows: int) -> None:
    inputs = np.linspace(-8, 4, rows, dtype=np.float32)[:, None]
    labels = np.arange(rows) % 2
    recorded = record(AddingBackend(), (inputs,), labels)
    logit = inputs[:, 0] + np.arange(1, 4)[:, None]  # (K, N)
    assert recorded.log_probs.shape == (3, rows, 2)
    assert recorded.log_probs[..., 1] == pytest.approx(logit - np.logaddexp(0, logit), rel=2e-3)
    assert np.array_equal(recorded.labels, labels)


def test_inputs_go_through_in_small_batches() -> None:
    backend = AddingBackend()
    record(backend, (np.zeros((250, 1), np.float32),), np.zeros(250, np.int64))
    assert max(backend.batches) <= 100
    assert sum(backend.batches) == 3 * 250


def test_every_array_of_the_input_is_cut_into_the_same_rows() -> None:
    inputs, mask = np.linspace(-8, 4, 150, dtype=np.float32)[:, None], np.ones((150, 7), np.int64)
    labels = np.zeros(150, np.int64)
    alone = record(AddingBackend(), (inputs,), labels)
    assert np.array_equal(
        record(AddingBackend(), (inputs, mask), labels).log_probs, alone.log_probs
    )


def test_pixels_are_recorded_in_half_precision_with_their_labels(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
    labels = (inputs > -2).astype(np.int64)
    recorded = record(AddingBackend(), (inputs,), labels)
    logit = inputs + np.arange(1, 4)[:, None, None]  # (K, N, P)
    assert recorded.log_probs.shape == (3, 120, 6, 2) and recorded.log_probs.dtype == np.float16
    assert recorded.log_probs[..., 1] == pytest.approx(logit - np.logaddexp(0, logit), rel=2e-3)
    assert recorded.correct == pytest.approx(((logit > 0) == labels).mean(2).T)
    assert recorded.correct[:, 1].tolist() == [1.0] * 120 > recorded.correct[:, 0].tolist()
    save_recorded(Recorded(recorded, recorded, recorded), tmp_path / "recorded.npz")
    for loaded in load_recorded(tmp_path / "recorded.npz"):
        assert loaded is not None
        assert np.array_equal(loaded.log_probs, recorded.log_probs)
        assert np.array_equal(loaded.labels, labels) and loaded.labels.dtype == np.int64


def test_predictions_tell_nearly_certain_rows_apart() -> None:
    inputs = np.array([[10.0], [10.5]], np.float32)
    kept = record(AddingBackend(), (inputs,), np.zeros(2, np.int64)).log_probs
    assert kept.dtype == np.float16
    assert (kept[:, 0, 1] < kept[:, 1, 1]).all()


def test_correct_compares_each_exits_answer_with_the_label() -> None:
    probs = np.array([[[0.9, 0.1], [0.9, 0.1]], [[0.2, 0.8], [0.7, 0.3]]])
    known = Predictions(np.log(probs).astype(np.float16), np.array([1, 0]))
    assert known.correct.tolist() == [[False, True], [True, True]]


def test_recorded_sets_come_back_as_they_were_saved(tmp_path: Path) -> None:
    saved = Recorded(*(predictions(rows, seed=rows) for rows in (20, 25, 30)))
    save_recorded(saved, tmp_path / "recorded.npz")
    loaded = load_recorded(tmp_path / "recorded.npz")
    for before, after in zip(saved, loaded, strict=True):
        assert before is not None and after is not None
        assert np.array_equal(before.log_probs, after.log_probs)
        assert after.log_probs.dtype == np.float16
        assert np.array_equal(before.labels, after.labels)
        assert after.labels.dtype == np.int64


def test_a_file_without_rows_to_certify_has_none(tmp_path: Path) -> None:
    saved = Recorded(predictions(20, seed=0), None, predictions(30, seed=1))
    save_recorded(saved, tmp_path / "recorded.npz")
    with np.load(tmp_path / "recorded.npz") as arrays:
        assert set(arrays) == {
            f"{part}_{what}" for part in ROWS for what in ("log_probs", "labels")
        }  # as in earlier versions
    loaded = load_recorded(tmp_path / "recorded.npz")
    assert loaded.certification is None
    assert np.array_equal(loaded.test.labels, saved.test.labels)


def test_certain_answers_are_kept_as_finite_logarithms() -> None:
    inputs = np.array([[1e5], [-1e5]], np.float32)
    kept = record(AddingBackend(), (inputs,), np.zeros(2, np.int64))
    assert kept.log_probs.min() == -100 and kept.log_probs.max() == 0


ROWS = {"calibration": 20, "test": 30}


def sound_arrays() -> dict[str, NDArray[Any]]:
    """Predictions of 3 exits and 4 classes, as any framework makes them."""
    rng, arrays = np.random.default_rng(0), {}
    for part, rows in ROWS.items():
        arrays[f"{part}_probs"] = rng.dirichlet(np.ones(4), (3, rows))
        arrays[f"{part}_labels"] = rng.integers(0, 4, rows)
    return arrays


def write(folder: Path, arrays: dict[str, NDArray[Any]]) -> Path:
    np.savez(folder / "mine.npz", **arrays)  # type: ignore[arg-type]
    return folder / "mine.npz"


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_predictions(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("f2", 2e-3), ("f4", 1e-6), ("f8", 1e-6), (">f4", 1e-6)]
)
def test_predictions_of_every_precision_are_read(
    tmp_path: Path, kind: str, tolerance: float
) -> None:
    arrays = sound_arrays()
    stored = {name: a.astype(kind) if "probs" in name else a for name, a in arrays.items()}
    recorded = load_predictions(write(tmp_path, stored))
    assert recorded.certification is None
    for part, found in zip(ROWS, (recorded.calibration, recorded.test), strict=True):
        assert np.exp(found.log_probs) == pytest.approx(arrays[f"{part}_probs"], abs=tolerance)
        assert np.array_equal(found.labels, arrays[f"{part}_labels"])


@pytest.mark.parametrize("kind", ["u1", "i2", ">i4", "u8"])
def test_labels_may_be_whole_numbers_of_any_size(tmp_path: Path, kind: str) -> None:
    arrays = sound_arrays()
    stored = arrays | {"test_labels": arrays["test_labels"].astype(kind)}
    labels = load_predictions(write(tmp_path, stored)).test.labels
    assert labels.dtype == np.int64 and np.array_equal(labels, arrays["test_labels"])


def test_a_probability_of_0_has_a_finite_logarithm(tmp_path: Path) -> None:
    arrays = sound_arrays()
    arrays["test_probs"][1, 7] = [0, 1, 0, 0]
    log_probs = load_predictions(write(tmp_path, arrays)).test.log_probs
    assert np.isfinite(log_probs).all()
    assert np.exp(log_probs[1, 7]) == pytest.approx([0, 1, 0, 0], abs=1e-30)


def test_other_arrays_in_the_file_are_ignored(tmp_path: Path) -> None:
    arrays = sound_arrays() | {
        "notes": np.array("made yesterday"),
        "certification_probs": np.full((3, 9, 4), 0.25),
        "certification_labels": np.zeros(9, np.int64),
    }
    recorded = load_predictions(write(tmp_path, arrays))
    assert len(recorded.test.labels) == 30 and recorded.certification is None


@pytest.mark.parametrize("total", [1 - 0.0049, 1 + 0.0049])
def test_rows_that_nearly_sum_to_1_are_scaled(tmp_path: Path, total: float) -> None:
    arrays = sound_arrays()
    exact = load_predictions(write(tmp_path, arrays)).test.log_probs
    arrays["test_probs"] *= total
    brought = load_predictions(write(tmp_path, arrays)).test.log_probs
    assert brought == pytest.approx(exact, abs=1e-6)
    assert np.exp(brought.astype(float)).sum(-1) == pytest.approx(np.ones((3, 30)), abs=1e-6)


@pytest.mark.parametrize("total", [1 - 0.0051, 1 + 0.0051, 0.0, 2.0])
@pytest.mark.parametrize("part", ROWS)
def test_rows_that_sum_to_something_else_are_named(tmp_path: Path, part: str, total: float) -> None:
    arrays = sound_arrays()
    arrays[f"{part}_probs"][2, 11] *= total
    told = refusal(write(tmp_path, arrays))
    assert f"{part}_probs[2, 11] sums to {total:.4g}" in told and "softmax" in told


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-3])
@pytest.mark.parametrize("part", ROWS)
def test_values_that_are_not_probabilities_are_named(
    tmp_path: Path, part: str, value: float
) -> None:
    arrays = sound_arrays()
    arrays[f"{part}_probs"][1, 7, 3] = value
    told = refusal(write(tmp_path, arrays))
    assert f"{part}_probs[1, 7] holds NaN, infinite or negative" in told and "remove" in told


def test_a_negative_value_is_named_even_if_the_row_sums_to_1(tmp_path: Path) -> None:
    arrays = sound_arrays()
    arrays["test_probs"][0, 29] = [-0.5, 0.5, 0.5, 0.5]
    assert "test_probs[0, 29] holds NaN, infinite or negative" in refusal(write(tmp_path, arrays))


def test_the_first_bad_row_is_the_one_that_is_named(tmp_path: Path) -> None:
    arrays = sound_arrays()
    arrays["calibration_probs"][1, [4, 9]] = np.nan
    assert "calibration_probs[1, 4]" in refusal(write(tmp_path, arrays))


@pytest.mark.parametrize("name", list(sound_arrays()))
def test_a_missing_array_is_named(tmp_path: Path, name: str) -> None:
    arrays = sound_arrays()
    del arrays[name]
    assert f"mine.npz has no array {name}; it must hold" in refusal(write(tmp_path, arrays))


@pytest.mark.parametrize(
    "change",
    [
        lambda probs: probs[0],
        lambda probs: probs[..., None],
        lambda probs: probs[:0],
        lambda probs: probs[:, :0],
        lambda probs: probs[..., :0],
        lambda probs: (probs > 0.5).astype(int),
        lambda probs: probs > 0.5,
        lambda probs: probs.astype(complex),
        lambda probs: probs.astype(str),
    ],
    ids=["2-d", "4-d", "no exits", "no rows", "no classes", "whole", "bool", "complex", "text"],
)
def test_probabilities_of_a_wrong_shape_or_type_are_named(
    tmp_path: Path, change: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    arrays = sound_arrays()
    changed = change(arrays["calibration_probs"])
    told = refusal(write(tmp_path, arrays | {"calibration_probs": changed}))
    assert f"calibration_probs has the shape {changed.shape} and the type" in told
    assert "floating-point probabilities (exits, rows, classes)" in told


@pytest.mark.parametrize("label", [-1, 4])
@pytest.mark.parametrize("part", ROWS)
def test_a_label_outside_the_classes_is_named(tmp_path: Path, part: str, label: int) -> None:
    arrays = sound_arrays()
    arrays[f"{part}_labels"][13] = label
    assert f"{part}_labels[13] is {label}, outside the classes 0 to 3" in (
        refusal(write(tmp_path, arrays))
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda labels: labels[:-1],
        lambda labels: labels[:, None],
        lambda labels: labels.astype(float),
        lambda labels: labels > 1,
        lambda labels: labels.astype(str),
    ],
    ids=["too few", "2-d", "float", "bool", "text"],
)
def test_labels_of_a_wrong_length_or_type_are_named(
    tmp_path: Path, change: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    arrays = sound_arrays()
    told = refusal(write(tmp_path, arrays | {"test_labels": change(arrays["test_labels"])}))
    assert "test_labels has the shape" in told
    assert "one whole number for each of the 30 rows" in told


@pytest.mark.parametrize("cut", [np.s_[:2], np.s_[:, :, :3]], ids=["exits", "classes"])
def test_both_sets_must_have_the_same_exits_and_classes(tmp_path: Path, cut: Any) -> None:
    arrays = sound_arrays()
    probs = arrays["test_probs"][cut]
    arrays["test_probs"] = probs / probs.sum(-1, keepdims=True)
    arrays["test_labels"] %= 3
    told = refusal(write(tmp_path, arrays))
    assert f"(3, 20, 4), test_probs {probs.shape}; exits and classes must be the same" in told


def damaged_file(folder: Path, damage: str) -> Path:
    path = write(folder, sound_arrays())
    if damage == "an npy":
        np.save(folder / "mine", sound_arrays()["test_probs"])
        (folder / "mine.npy").rename(path)
    elif damage == "missing":
        path.unlink()
    else:
        whole = path.read_bytes()
        contents = {"empty": b"", "text": b"hello", "cut off": whole[: len(whole) // 2]}
        path.write_bytes(contents[damage])
    return path


DAMAGES = ["empty", "text", "cut off", "an npy", "missing"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_npz_is_one_sentence(tmp_path: Path, damage: str) -> None:
    with warnings.catch_warnings():  # whether it is closed again is the next test's business
        warnings.simplefilter("ignore", ResourceWarning)
        path = damaged_file(tmp_path, damage)
        problem = "cannot be opened" if damage == "missing" else "is not an npz of plain arrays"
        assert f"{path} {problem}" in refusal(path)
        gc.collect(1)  # what is young, and so not all that torch keeps alive


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_npz_is_closed_again(tmp_path: Path, damage: str) -> None:
    path = damaged_file(tmp_path, damage)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        refusal(path)
        gc.collect(1)  # what is young, and so not all that torch keeps alive
    assert [str(warning.message) for warning in told] == []


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("name", ["calibration_probs", "test_labels"])
def test_a_pickle_in_the_file_is_not_opened(tmp_path: Path, name: str) -> None:
    bomb = np.empty(1, object)
    bomb[0] = Bomb(tmp_path / "opened")
    path = write(tmp_path, sound_arrays() | {name: bomb})
    assert "is not an npz of plain arrays" in refusal(path)
    assert not (tmp_path / "opened").exists()
