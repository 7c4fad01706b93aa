"""Histograms that take many values at once, for Prometheus."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Floats = NDArray[np.float64]


class Histogram:
    """Counts values by buckets.

    Args:
        bounds: Upper bounds of the buckets, rising; a value on a bound counts below it.
    """

    def __init__(self, bounds: Floats) -> None:
        self._bounds = bounds
        self.counts = np.zeros(len(bounds) + 1, np.int64)
        self.sum = 0.0

    def observe(self, values: Floats) -> None:
        """Count values (N,), of which none is NaN."""
        places = np.searchsorted(self._bounds, values, side="left")
        self.counts += np.bincount(places, minlength=len(self.counts))
        self.sum += float(values.sum())


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
        self._shown = [*map(floatToGoString, bounds), "+Inf"]
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
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, histogram in list(self._children.items()):
            below = np.cumsum(histogram.counts).tolist()
            buckets = list(zip(self._shown, map(float, below), strict=True))
            family.add_metric(values, buckets, histogram.sum)
        return [family]

    def describe(self) -> Iterable[Metric]:
        """Return the family without values, so that registering it collects nothing."""
        return [HistogramMetricFamily(self._name, self._text, labels=self._labels)]
