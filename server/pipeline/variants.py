"""Builds one precision of a bundle: write its graphs, record, profile and fit."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.backend import State
from models.bundle import KNOWN_ANSWERS, Precision, graph_files
from models.data.dataset import Dataset, Split
from models.export.float16 import to_float16
from models.export.int8 import quantise_graphs
from models.export.onnx_graphs import Graphs, write_graphs
from models.export.weights import Storage
from models.known_answers import record_known_answers, save_known_answers
from models.preprocess import ImagePreprocessor, TextPreprocessor
from models.runtime.onnx_devices import open_onnx_backend
from profiling.calibration import Predictions, Recorded
from profiling.latency import measure_latency
from profiling.recording import first_rows, record_split, served_states
from scheduler.fitting.prior import Prior
from server.pipeline.fitting import BuiltVariant, VariantFitter
from server.pipeline.schedulers import FitKind

SCALE_ROWS, CHOICE_ROWS = 300, 500  # clean training rows that fix and that choose int8 scales
KNOWN_ROWS = 8


@dataclass(frozen=True)
class VariantBuilder:
    """Builds precisions of one exported network into a bundle.

    Attributes:
        folder: The bundle.
        graphs: The network in single precision.
        data: The dataset; segmentation has its labels on the policies' grid.
        preprocess: The bundle's preprocessing.
        policy: The policy that a server starts with.
        prior: Shares of the classes that schedulers are fitted for; None: the calibration rows'.
        costs_ms: Latency until each exit, measured elsewhere, (K,); None: measured here.
        seed: Seed of the fit and of the choice of training rows.
        log_step: Called with each step as it begins.
        label_sets: Whether a row may have several classes.
    """

    folder: Path
    graphs: Graphs
    data: Dataset
    preprocess: ImagePreprocessor | TextPreprocessor
    policy: str
    prior: Prior | None
    costs_ms: NDArray[np.float64] | None
    seed: int
    log_step: Callable[[str], None]
    label_sets: bool = False

    def float32(self, storage: Storage = "exact") -> BuiltVariant:
        """Build the network in single precision."""
        return self._build("float32", self.graphs, storage, {"storage": storage})

    def record_compact(self) -> Predictions:
        """Record the calibration rows in single precision with weights of 8 bits."""
        with tempfile.TemporaryDirectory() as folder:
            backend = write_graphs(self.graphs, Path(folder), "int8")
            return record_split(backend, self.preprocess, self.data.calibration)

    def float16(self) -> BuiltVariant:
        """Build the network in half precision."""
        self.log_step("converting the graphs to float16")
        return self._build("float16", to_float16(self.graphs), "exact", {})

    def int8(self, max_loss: float) -> BuiltVariant:
        """Build the network with integer arithmetic, its scales fixed by clean training rows.

        Args:
            max_loss: Accuracy that an exit may lose; nodes stay in float until it is kept.

        Raises:
            CannotQuantise: If there are too few training rows, or nothing to quantise.
        """
        self.log_step("quantising the graphs to int8")
        order = np.random.default_rng(self.seed).permutation(len(self.data.train.labels))
        scale_rows, choice_rows = np.split(order[: SCALE_ROWS + CHOICE_ROWS], [SCALE_ROWS])
        quantised = quantise_graphs(
            self.graphs,
            self._clean(scale_rows),
            # A dataset of fewer rows chooses by those that fix the scales.
            self._clean(choice_rows if len(choice_rows) else scale_rows),
            max_loss=max_loss,
            log_step=self.log_step,
        )
        return self._build("int8", quantised.graphs, "exact", quantised.method)

    def add_schedulers(self, variant: BuiltVariant, kinds: Sequence[FitKind]) -> BuiltVariant:
        """Fit further schedulers to a variant that the bundle will hold, beside its policy's."""
        return self._fitter.add_schedulers(variant, kinds)

    @property
    def _fitter(self) -> VariantFitter:
        return VariantFitter(
            self.folder, self.policy, self.prior, self.seed, self.log_step, self.label_sets
        )

    def discard(self, variant: BuiltVariant) -> None:
        """Remove the files of a variant that the bundle will not hold."""
        shutil.rmtree(self.folder / variant.entry.folder)

    def _clean(self, rows: NDArray[np.intp]) -> list[State]:
        """Return training rows as they would be served, batches of one shape."""
        split = _rows_of(self.data.train, rows)
        return [state for _, state in served_states(self.preprocess, split)]

    def _build(
        self, precision: Precision, graphs: Graphs, storage: Storage, method: dict[str, Any]
    ) -> BuiltVariant:
        folder, data, log_step = self.folder / precision, self.data, self.log_step
        backend = write_graphs(graphs, folder, storage)
        few = first_rows(self.preprocess, data.train, KNOWN_ROWS)
        stages, heads = graph_files(folder, backend.num_exits)
        save_known_answers(record_known_answers(stages, heads, few), folder / KNOWN_ANSWERS)
        held_out = data.certification
        certified = 0 if held_out is None else len(held_out.labels)
        log_step(
            f"{precision}: recording predictions of {len(data.calibration.labels)} calibration, "
            f"{certified} certification and {len(data.test.labels)} test rows"
        )
        recorded = Recorded(
            record_split(backend, self.preprocess, data.calibration),
            None if held_out is None else record_split(backend, self.preprocess, held_out),
            record_split(backend, self.preprocess, data.test),
        )
        log_step(f"{precision}: profiling this machine")
        # float16 is for GPUs: where there is one, its latency is measured there.
        timed = open_onnx_backend(stages, heads) if precision == "float16" else backend
        profile = measure_latency(timed, self.preprocess.example)
        return self._fitter.fit(precision, recorded, profile, method, self.costs_ms)


def _rows_of(split: Split, rows: NDArray[np.intp]) -> Split:
    if isinstance(split.inputs, list):
        return Split([split.inputs[row] for row in rows], split.labels[rows])
    return Split(split.inputs[rows], split.labels[rows])  # type: ignore[call-overload]
