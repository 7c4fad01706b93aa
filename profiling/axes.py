"""Name the order of the axes of predictions that were stored in another order than ours."""

import itertools

import numpy as np
from numpy.typing import NDArray

AXES = ("exits", "rows", "classes")
PROBED = 50  # entries of each axis that are summed
NEAR_ONE = 0.01


def misplaced_axes(probs: NDArray[np.floating], labels: NDArray[np.generic]) -> str | None:
    """Say which order the axes of predictions seem to have, if it is not (exits, rows, classes).

    An order fits if there are as many rows as labels, a class for each label, and probabilities
    that sum to 1 over the classes.

    Args:
        probs: Probabilities with three axes in unknown order.
        labels: Labels of the rows, (N,).

    Returns:
        A clause for a message; None if the axes are in order, or no order fits.
    """
    is_table = probs.ndim == 3 and labels.ndim == 1 and probs.dtype.kind == "f"
    if not is_table or not labels.size or 0 in probs.shape:
        return None
    orders = list(itertools.permutations(range(3)))
    if _fits(probs, labels, orders[0]):
        return None
    for order in orders[1:]:
        if _fits(probs, labels, order):
            found = ", ".join(AXES[order.index(axis)] for axis in range(3))
            return (
                f"its axes look like ({found}); give (exits, rows, classes), in numpy "
                f"probs.transpose{order}"
            )
    rows = [axis for axis in (0, 2) if probs.shape[axis] == len(labels)]
    if probs.shape[1] != len(labels) and len(rows) == 1:
        given = f"its axis {rows[0]} is as long as the {len(labels)} labels"
        return f"{given}; give (exits, rows, classes)"
    return None


def _fits(probs: NDArray[np.floating], labels: NDArray[np.generic], order: tuple[int, ...]) -> bool:
    """Whether the axes are exits, rows and classes in this order."""
    _, num_rows, num_classes = (probs.shape[axis] for axis in order)
    if num_rows != len(labels) or (labels.dtype.kind in "iu" and labels.max() >= num_classes):
        return False
    few = probs.transpose(order)[:PROBED, :PROBED].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return bool((np.abs(few.sum(-1) - 1) < NEAR_ONE).all())
