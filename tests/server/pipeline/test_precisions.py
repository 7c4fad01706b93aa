"""Which precisions a build keeps, by the figures of variants that nobody had to build."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import server.pipeline.precisions
from models.bundle import Measured, Precision, VariantEntry
from models.export.graph_parts import CannotQuantise
from models.export.int8 import LosesAccuracy
from models.export.weights import Storage
from profiling.calibration import Predictions, Recorded
from scheduler.baselines import ConfidencePolicy
from scheduler.fitted import Scheduler
from scheduler.frontier import Frontier
from scheduler.thresholds import ThresholdTable
from server.pipeline.fitting import BuiltVariant
from server.pipeline.precisions import choose_precisions
from server.pipeline.variants import VariantBuilder

ROWS, EXITS = 2000, 2
ACCURACY = (0.8, 0.9)
MAX_LOSS = 0.005


def predictions(accuracy: Sequence[float]) -> Predictions:
    """Predictions of two classes; exit k is right in a share of `accuracy[k]` of the rows."""
    probs = np.full((EXITS, ROWS, 2), 0.9)
    probs[..., 1] = 0.1
    for exit, share in enumerate(accuracy):
        right = round(share * ROWS)
        probs[exit, right:] = probs[exit, right:, ::-1]
    return Predictions(np.log(probs), np.zeros(ROWS, np.int64))


class Builder:
    """Knows the figures of every precision; only the folders are real."""

    discard = VariantBuilder.discard

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Of each precision: accuracy on calibration and test rows, latency.
        self.figures: dict[str, tuple[Sequence[float], ...]] = {
            "float32": (ACCURACY, ACCURACY, (2.0, 4.0)),
            "float16": (ACCURACY, ACCURACY, (1.0, 2.0)),
            "int8": (ACCURACY, ACCURACY, (1.0, 2.0)),
        }
        self.compact: Sequence[float] = ACCURACY
        self.fault: CannotQuantise | None = None
        self.built: list[tuple[str, str]] = []

    def log_step(self, step: str) -> None:
        pass

    def float32(self, storage: Storage = "exact") -> BuiltVariant:
        return self._made("float32", storage)

    def float16(self) -> BuiltVariant:
        return self._made("float16", "exact")

    def int8(self, max_loss: float) -> BuiltVariant:
        assert max_loss == MAX_LOSS
        if self.fault is not None:
            raise self.fault
        return self._made("int8", "exact")

    def record_compact(self) -> Predictions:
        return predictions(self.compact)

    def _made(self, precision: Precision, storage: str) -> BuiltVariant:
        self.built.append((precision, storage))
        (self.folder / precision).mkdir()
        (self.folder / precision / "stand-in").touch()
        calibration, test, costs_ms = self.figures[precision]
        frontier = Frontier(
            np.arange(1.0, EXITS + 1), np.eye(EXITS), np.array(calibration), np.array(costs_ms)
        )
        entry = VariantEntry(
            folder=precision,
            predictions=f"{precision}/predictions.npz",
            schedulers={"maxprob": f"{precision}/schedulers/maxprob"},
            policy="maxprob",
            default_budget_ms=1.0,
            method={"storage": storage},
        )
        policy = ConfidencePolicy(ThresholdTable.closed(EXITS), "maxprob")
        return BuiltVariant(
            precision,
            entry,
            Measured(accuracy=test, latency_ms=costs_ms),
            Recorded(predictions(calibration), None, predictions(test)),
            Scheduler(policy, frontier),
            [],
        )

    def change(self, precision: str, **figures: Sequence[float]) -> None:
        before = dict(
            zip(("calibration", "test", "costs_ms"), self.figures[precision], strict=True)
        )
        self.figures[precision] = tuple((before | figures).values())


@pytest.fixture
def builder(tmp_path: Path) -> Any:
    return Builder(tmp_path)


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The device of this machine: a CPU, unless a test changes its name."""
    device = SimpleNamespace(name="cpu")
    monkeypatch.setattr(server.pipeline.precisions, "open_device", lambda _: device)
    return device


def held(builder: Any, variants: Sequence[BuiltVariant]) -> list[str]:
    """The precisions of a bundle; checks that it has their folders and no others."""
    names = [variant.precision for variant in variants]
    assert sorted(path.name for path in builder.folder.iterdir()) == sorted(names)
    return list(names)


def test_single_precision_is_built_alone_by_default(builder: Any) -> None:
    built = choose_precisions(builder, "float32", MAX_LOSS)
    assert held(builder, built.variants) == ["float32"]
    assert builder.built == [("float32", "exact")] and built.left_out == []


@pytest.mark.parametrize("choice", ["int8", "float16", "auto"])
def test_the_faster_precision_comes_first(builder: Any, choice: Any) -> None:
    built = choose_precisions(builder, choice, MAX_LOSS)
    assert held(builder, built.variants) == ["int8" if choice == "auto" else choice, "float32"]
    assert built.left_out == []
    assert built.trained == Measured(accuracy=ACCURACY, latency_ms=(2.0, 4.0))


@pytest.mark.parametrize("costs_ms", [(3.0, 6.0), (2.0, 4.0)])
def test_auto_leaves_out_what_has_no_better_frontier(
    builder: Any, costs_ms: tuple[float, float]
) -> None:
    builder.change("int8", costs_ms=costs_ms)
    built = choose_precisions(builder, "auto", MAX_LOSS)
    assert held(builder, built.variants) == ["float32"]
    (said,) = built.left_out
    assert said.startswith("int8 is left out: on this machine its accuracy at equal latency is 80.")
    assert said.endswith("%") and "that of float32 8" in said


def test_a_precision_that_is_named_may_be_slow(builder: Any) -> None:
    builder.change("int8", costs_ms=(3.0, 6.0))
    built = choose_precisions(builder, "int8", MAX_LOSS)
    assert held(builder, built.variants) == ["int8", "float32"]


def test_auto_tries_half_precision_where_there_is_a_gpu(
    builder: Any, device: SimpleNamespace
) -> None:
    device.name = "cuda:0"
    builder.change("int8", costs_ms=(3.0, 6.0))
    built = choose_precisions(builder, "auto", MAX_LOSS)
    assert held(builder, built.variants) == ["float16", "float32"]
    assert [said.split()[0] for said in built.left_out] == ["int8"]


@pytest.mark.parametrize("choice", ["int8", "float16", "auto"])
@pytest.mark.parametrize("rows", ["calibration", "test"])
@pytest.mark.parametrize("exit", range(EXITS))
def test_a_precision_that_loses_too_much_is_left_out(
    builder: Any, choice: Any, rows: str, exit: int
) -> None:
    name = "int8" if choice == "auto" else choice
    accuracy = np.array(ACCURACY)
    accuracy[exit] -= 0.006
    builder.change(name, **{rows: tuple(accuracy)})
    built = choose_precisions(builder, choice, MAX_LOSS)
    assert held(builder, built.variants) == ["float32"]
    assert built.left_out == [
        f"{name} is left out: exit {exit} loses 0.60 points on the {rows} rows, more than "
        f"--max-precision-loss 0.005"
    ]


def test_a_smaller_loss_is_accepted(builder: Any) -> None:
    less = (0.796, 0.896)
    builder.change("int8", calibration=less, test=less)
    built = choose_precisions(builder, "int8", MAX_LOSS)
    assert held(builder, built.variants) == ["int8", "float32"]
    assert built.trained.accuracy == ACCURACY  # of the network as trained, not of the first


@pytest.mark.parametrize("choice", ["int8", "auto"])
def test_a_loss_that_no_choice_avoids_leaves_int8_out(builder: Any, choice: Any) -> None:
    builder.fault = LosesAccuracy("exit 1 loses 3 points")
    built = choose_precisions(builder, choice, MAX_LOSS)
    assert held(builder, built.variants) == ["float32"]
    assert built.left_out == ["int8 is left out: exit 1 loses 3 points"]


def test_what_cannot_be_quantised_is_told_where_it_was_named(builder: Any) -> None:
    builder.fault = CannotQuantise("there are too few rows")
    with pytest.raises(CannotQuantise, match="too few rows"):
        choose_precisions(builder, "int8", MAX_LOSS)


def test_what_cannot_be_quantised_is_left_out_of_auto(builder: Any) -> None:
    builder.fault = CannotQuantise("there are too few rows")
    built = choose_precisions(builder, "auto", MAX_LOSS)
    assert held(builder, built.variants) == ["float32"]
    assert built.left_out == ["int8 is left out: there are too few rows"]


@pytest.mark.parametrize(("lost", "storage"), [(0.0, "int8"), (0.0005, "int8"), (0.002, "exact")])
def test_single_precision_beside_int8_is_stored_in_8_bits_unless_that_loses_accuracy(
    builder: Any, lost: float, storage: str
) -> None:
    builder.compact = (0.8, 0.9 - lost)
    built = choose_precisions(builder, "int8", MAX_LOSS)
    assert held(builder, built.variants) == ["int8", "float32"]
    assert built.variants[-1].entry.method == {"storage": storage}


def test_single_precision_beside_half_precision_stays_exact(builder: Any) -> None:
    built = choose_precisions(builder, "float16", MAX_LOSS)
    assert held(builder, built.variants) == ["float16", "float32"]
    assert built.variants[-1].entry.method == {"storage": "exact"}
