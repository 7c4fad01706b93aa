import itertools
from pathlib import Path

import numpy as np
import pytest

from profiling.axes import misplaced_axes
from profiling.calibration import load_predictions


def make_probs(exits: int = 3, rows: int = 40, classes: int = 5) -> np.ndarray:
    logits = np.random.default_rng(0).normal(size=(exits, rows, classes))
    probs: np.ndarray = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return probs


LABELS = np.arange(40) % 5
ORDERS = [order for order in itertools.permutations(range(3)) if order != (0, 1, 2)]


@pytest.mark.parametrize("order", ORDERS)
def test_another_order_of_the_axes_is_named_with_the_remedy(order: tuple[int, ...]) -> None:
    stored = make_probs().transpose(order)
    found = misplaced_axes(stored, LABELS)
    assert found is not None
    names = ", ".join(("exits", "rows", "classes")[axis] for axis in order)
    assert f"its axes look like ({names})" in found
    back = tuple(map(int, found.partition("transpose(")[2].rstrip(")").split(", ")))
    np.testing.assert_array_equal(stored.transpose(back), make_probs())


def test_axes_in_order_are_left_alone() -> None:
    assert misplaced_axes(make_probs(), LABELS) is None
    assert misplaced_axes(make_probs(3, 3, 3), LABELS[:3] % 3) is None


def test_logits_are_told_by_the_number_of_rows_alone() -> None:
    logits = np.random.default_rng(0).normal(size=(40, 3, 5))
    found = misplaced_axes(logits, LABELS)
    assert found is not None and "its axis 0 is as long as the 40 labels" in found


def test_what_fits_no_order_is_left_to_other_checks() -> None:
    assert misplaced_axes(np.ones((3, 7, 5)), LABELS) is None
    assert misplaced_axes(np.ones((3, 40)), LABELS) is None


def test_a_file_of_another_order_is_refused(tmp_path: Path) -> None:
    path, probs = tmp_path / "p.npz", make_probs().transpose(1, 0, 2)
    np.savez(
        path,
        calibration_probs=probs,
        calibration_labels=LABELS,
        test_probs=probs,
        test_labels=LABELS,
        allow_pickle=False,
    )
    with pytest.raises(
        ValueError,
        match=r"calibration_probs has the shape \(40, 3, 5\), and its axes look like \(rows, exits,"
        r" classes\); give .* probs.transpose\(1, 0, 2\)",
    ):
        load_predictions(path)
