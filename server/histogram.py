"""Histograms that take many values at once, for Prometheus."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from server.series import Labels, bucket_texts, label_text, number_text, series_text

Floats = NDArray[np.float64]


class Histogram:
    """Counts values by buckets.

    Args:
        bounds: Upper bounds of the buckets, rising; a value on a bound counts below it.
        wall_clock: Seconds since the epoch.

    Attributes:
        counts: Values in each bucket, (B,).
        sum: Of all values.
        exemplars: The latest trace in each bucket that has had any.
    """

    def __init__(self, bounds: Floats, wall_clock: Callable[[], float] = time.time) -> None:
        self._bounds, self._wall_clock = bounds, wall_clock
        self.counts = np.zeros(len(bounds) + 1, np.int64)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def observe(self, values: Floats) -> None:
        """Count values (N,), of which none is NaN."""
        places = np.searchsorted(self._bounds, values, side="left")
        self.counts += np.bincount(places, minlength=len(self.counts))
        self.sum += float(values.sum())

    def note_exemplar(self, value: float, trace_id: str) -> None:
        """Name a trace in which a value was counted."""
        place = int(np.searchsorted(self._bounds, value, side="left"))
        now_s = round(self._wall_clock(), 3)
        self.exemplars[place] = Exemplar({"trace_id": trace_id}, value, now_s)


class HistogramFamily(Collector):
    """Histograms of one name, by labels; `prometheus_client`'s take one value at a time.

    Args:
        name: Its name.
        text: What it counts.
        labels: Names of the labels.
        bounds: As for `Histogram`.
        registry: Where it is registered.
    """

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = np.array(bounds, np.float64)
        self._shown = (*map(floatToGoString, bounds), "+Inf")
        self._children: dict[tuple[str, ...], Histogram] = {}
        registry.register(self)

    def labels(self, *values: str) -> Histogram:
        """Return the histogram with these values of the labels; it is made where there is none."""
        if values not in self._children:
            self._children[values] = Histogram(self._bounds)
        return self._children[values]

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """Remove the histograms whose labels have these values."""
        wanted = {self._labels.index(name): value for name, value in labels.items()}
        self._children = {
            values: child
            for values, child in self._children.items()
            if any(values[place] != value for place, value in wanted.items())
        }

    def collect(self) -> Iterable[Metric]:
        """Return the family."""
        children = list(self._children.items())
        return [HistogramMetric(self._name, self._text, self._labels, self._shown, children)]

    def describe(self) -> Iterable[Metric]:
        """Return the family without values, so that registering it collects nothing."""
        return [HistogramMetricFamily(self._name, self._text, labels=self._labels)]


class HistogramMetric(Metric):
    """What a family of histograms has counted by now.

    Args:
        name: Its name.
        text: What it counts.
        labels: Names of the labels.
        shown: Upper bounds of the buckets as text.
        children: Values of the labels, and the histogram that has them.
    """

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        shown: tuple[str, ...],
        children: Sequence[tuple[tuple[str, ...], Histogram]],
    ) -> None:
        self._labels, self._shown, self._children = labels, shown, children
        super().__init__(name, text, "histogram")

    @property
    def samples(self) -> list[Sample]:
        """The samples of all series; `lines` is quicker."""
        family = HistogramMetricFamily(self.name, self.documentation, labels=self._labels)
        for values, histogram in self._children:
            below = map(float, np.cumsum(histogram.counts).tolist())
            buckets: list[Any] = list(zip(self._shown, below, strict=True))
            for place, exemplar in histogram.exemplars.items():
                buckets[place] = (*buckets[place], exemplar)
            family.add_metric(values, buckets, histogram.sum)
        return family.samples

    @samples.setter
    def samples(self, samples: list[Sample]) -> None:
        """Take the empty list of the constructor of every metric."""

    def lines(self, *, exemplars: bool = False) -> list[str]:
        """Return the samples as text.

        Args:
            exemplars: Whether buckets name their traces, as OpenMetrics has it.
        """
        written: list[str] = []
        for values, histogram in self._children:
            labels = tuple(zip(self._labels, values, strict=True))
            below = np.cumsum(histogram.counts).astype(float).tolist()
            buckets = len(written)
            for series, value in zip(self._buckets(labels), below, strict=True):
                written.append(f"{series} {number_text(value)}\n")
            if exemplars:
                for place, exemplar in histogram.exemplars.items():
                    line = written[buckets + place].removesuffix("\n")
                    written[buckets + place] = f"{line} # {_exemplar_text(exemplar)}\n"
            count, total = below[-1], histogram.sum
            written.append(f"{series_text(f'{self.name}_count', labels)} {number_text(count)}\n")
            written.append(f"{series_text(f'{self.name}_sum', labels)} {number_text(total)}\n")
        return written

    def _buckets(self, labels: Labels) -> Sequence[str]:
        return bucket_texts(self.name, labels, self._shown)


def _exemplar_text(exemplar: Exemplar) -> str:
    labels = ",".join([label_text(*label) for label in sorted(exemplar.labels.items())])
    return f"{{{labels}}} {number_text(exemplar.value)} {exemplar.timestamp}"
