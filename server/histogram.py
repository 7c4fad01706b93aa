"""Histograms that take many values at once, for Prometheus."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

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
        self._shown = [*map(floatToGoString, bounds), "+Inf"]
        self._children: dict[tuple[str, ...], Histogram] = {}
        registry.register(self)

    def labels(self, *values: str) -> Histogram:
        """Return the histogram with these values of the labels; it is made where there is none."""
        if values not in self._children:
            self._children[values] = Histogram(self._bounds)
        return self._children[values]

    def collect(self) -> Iterable[Metric]:
        """Return the family."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, histogram in self._children.items():
            below = np.cumsum(histogram.counts).tolist()
            buckets: list[Any] = list(zip(self._shown, map(float, below), strict=True))
            for place, exemplar in histogram.exemplars.items():
                buckets[place] = (*buckets[place], exemplar)
            family.add_metric(values, buckets, histogram.sum)
        return [family]

    def describe(self) -> Iterable[Metric]:
        """Return the family without values, so that registering it collects nothing."""
        return [HistogramMetricFamily(self._name, self._text, labels=self._labels)]
