"""Collect the values of a graph's activations and derive the ranges that 8 bits should span."""

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import HistogramCollector

BINS = 512  # entropy compares every range with these bins; more bins take it much longer
PERCENTILE = 99.99
LEVELS = 128  # that entropy rounds a range's bins to, ONNX Runtime's own choice
HIGHEST = np.float32(np.inf)
SMALLEST = np.float32(1e-6)  # of a first range: a tensor of zeros has none


class Range(NamedTuple):
    """The lowest and the highest value that 8 bits represent."""

    lowest: np.float32
    highest: np.float32


Ranges = Mapping[str, Range]


@dataclass
class _Histogram:
    """Counts of values in equal bins from `-limit` to `limit`, which doubles as values exceed it.

    Doubling merges pairs of bins, so the memory is bounded and values are seen only once.
    """

    limit: np.float32
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    lowest: np.float32 = HIGHEST
    highest: np.float32 = -HIGHEST

    def add(self, values: NDArray[np.float32], lowest: np.float32, highest: np.float32) -> None:
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        while max(-lowest, highest) > self.limit:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.pad(merged, BINS // 4)
            self.limit *= np.float32(2)
        bins = ((values + self.limit) * (BINS / 2 / self.limit)).astype(np.int32)
        self.counts += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)

    def as_collected(self) -> tuple[Any, ...]:
        """Return the form in which ONNX Runtime's collector keeps a histogram."""
        edges = np.linspace(-self.limit, self.limit, BINS + 1, dtype=np.float32)
        return self.counts, edges, self.lowest, self.highest, self.limit


class ActivationHistograms:
    """Histograms of any number of tensors, by name."""

    def __init__(self) -> None:
        self._of: dict[str, _Histogram] = {}

    def add(self, name: str, values: NDArray[np.float32]) -> None:
        """Count the values of one batch."""
        flat = values.ravel()
        if not flat.size:
            return
        lowest, highest = flat.min(), flat.max()
        if name not in self._of:
            self._of[name] = _Histogram(np.maximum(max(-lowest, highest), SMALLEST))
        self._of[name].add(flat, lowest, highest)

    def min_max(self) -> Ranges:
        """Return ranges that clip no value that was seen."""
        return {name: Range(each.lowest, each.highest) for name, each in self._of.items()}

    def percentile(self) -> Ranges:
        """Return ranges that clip the few largest and smallest values."""
        return self._derived("percentile", HistogramCollector.compute_percentile)

    def entropy(self) -> Ranges:
        """Return ranges whose rounded values have the distribution nearest to the true one."""
        return self._derived("entropy", HistogramCollector.compute_entropy)

    def _derived(
        self, method: str, compute: Callable[[HistogramCollector], dict[str, Any]]
    ) -> Ranges:
        collector = HistogramCollector(
            method,
            symmetric=False,
            num_bins=BINS,
            num_quantized_bins=LEVELS,
            percentile=PERCENTILE,
            scenario="same",
        )
        collector.histogram_dict = {name: each.as_collected() for name, each in self._of.items()}
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            found = compute(collector)
        return {
            name: Range(np.float32(value[0]), np.float32(value[1])) for name, value in found.items()
        }


METHODS: Mapping[str, Callable[[ActivationHistograms], Ranges]] = {
    "min-max": ActivationHistograms.min_max,
    "percentile": ActivationHistograms.percentile,
    "entropy": ActivationHistograms.entropy,
}
