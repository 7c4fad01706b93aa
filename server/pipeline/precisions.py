"""Chooses the precisions that a bundle holds, by measuring them."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bundle import Measured, Precision
from models.export.graph_parts import CannotQuantise
from models.export.int8 import LosesAccuracy
from models.runtime.onnx_devices import open_device
from profiling.calibration import Predictions
from server.pipeline.fitting import BuiltVariant
from server.pipeline.variants import VariantBuilder

PrecisionChoice = Literal["float32", "float16", "int8", "auto"]
COMPACT_LOSS = 0.001  # accuracy that float32 may lose by storing its weights in 8 bits
BUDGETS = 25


class BuiltPrecisions(NamedTuple):
    """The precisions of a bundle.

    Attributes:
        variants: What the bundle holds, the best frontier first.
        trained: Accuracy and latency of the network as it was trained.
        left_out: Why a precision that was tried is not held, one sentence each.
    """

    variants: list[BuiltVariant]
    trained: Measured
    left_out: list[str]


def choose_precisions(
    builder: VariantBuilder, choice: PrecisionChoice, max_loss: float
) -> BuiltPrecisions:
    """Build the network in single precision, and in the other precisions that are asked for.

    Args:
        builder: Builds each precision.
        choice: A precision to hold beside `float32`. `auto`: those of `int8` and, where there is a
            GPU, `float16` that have a better frontier than `float32` on this machine.
        max_loss: Accuracy that an exit may lose against `float32`, on calibration and test rows.

    Raises:
        CannotQuantise: If `int8` is asked for and the network cannot be quantised at all.
    """
    exact = builder.float32()
    others, left_out = list[BuiltVariant](), list[str]()
    for precision in _candidates(choice):
        try:
            variant = builder.int8(max_loss) if precision == "int8" else builder.float16()
        except CannotQuantise as error:
            if choice != "auto" and not isinstance(error, LosesAccuracy):
                raise
            left_out.append(f"int8 is left out: {error}")
            continue
        fault = _loss_above(variant, exact, max_loss)
        if fault is None and choice == "auto":
            fault = _worse_frontier(variant, exact)
        if fault is None:
            others.append(variant)
        else:
            left_out.append(f"{precision} is left out: {fault}")
            builder.discard(variant)
    single = _compact(builder, exact) if any(v.precision == "int8" for v in others) else exact
    return BuiltPrecisions([*others, single], exact.measured, left_out)


def _candidates(choice: PrecisionChoice) -> list[Precision]:
    if choice == "float32":
        return []
    if choice != "auto":
        return [choice]
    return ["int8"] if open_device("auto").name == "cpu" else ["int8", "float16"]


def _loss_above(variant: BuiltVariant, exact: BuiltVariant, max_loss: float) -> str | None:
    """Describe the exit that loses too much accuracy; None if none does."""
    for rows, mine, theirs in (
        ("calibration", variant.recorded.calibration, exact.recorded.calibration),
        ("test", variant.recorded.test, exact.recorded.test),
    ):
        loss = _lost_accuracy(mine, theirs)
        exit = int(loss.argmax())
        if loss[exit] > max_loss:
            return (
                f"exit {exit} loses {100 * loss[exit]:.2f} points on the {rows} rows, more than "
                f"--max-precision-loss {max_loss:g}"
            )
    return None


def _lost_accuracy(mine: Predictions, theirs: Predictions) -> NDArray[np.float64]:
    """Return the accuracy that each exit loses, (K,)."""
    loss: NDArray[np.float64] = theirs.correct.mean(0) - mine.correct.mean(0)
    return loss


def _worse_frontier(variant: BuiltVariant, exact: BuiltVariant) -> str | None:
    """Describe by how much the frontier is worse than that of single precision; None if better."""
    # Budgets that both can keep.
    first_ms, last_ms = (
        max(float(each.frontier.costs_ms[exit]) for each in (variant, exact)) for exit in (0, -1)
    )
    budgets = np.linspace(first_ms, last_ms, BUDGETS)
    mine, theirs = (
        float(np.mean([each.frontier.at_cost(budget).expected_accuracy for budget in budgets]))
        for each in (variant, exact)
    )
    if mine > theirs:
        return None
    return (
        f"on this machine its accuracy at equal latency is {100 * mine:.2f} % on average, that of "
        f"float32 {100 * theirs:.2f} %"
    )


def _compact(builder: VariantBuilder, exact: BuiltVariant) -> BuiltVariant:
    """Store the weights of single precision in 8 bits, unless that loses accuracy.

    Beside int8 graphs, single precision serves devices without integer arithmetic, and should not
    take four times their space.
    """
    builder.log_step("float32: trying weights of 8 bits")
    loss = _lost_accuracy(builder.record_compact(), exact.recorded.calibration)
    if loss.max() > COMPACT_LOSS:
        return exact
    builder.discard(exact)
    return builder.float32("int8")
