"""Metrics as text: Prometheus' own format, and OpenMetrics.

`prometheus_client` takes some 20 us for each line, most of it to sort and escape labels that never
change. With 20 models there are 6,800 lines. So the labels of each series become text once here.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from server.histogram import HistogramMetric
from server.series import number_text, series_text

PLAIN_TYPES = {"unknown": "untyped", "info": "gauge", "stateset": "gauge"}
PLAIN_SUFFIXES = {"counter": "_total", "info": "_info"}  # of the family's name


def metrics_text(registry: CollectorRegistry, *, openmetrics: bool = False) -> bytes:
    """Return all metrics of a registry, without the times at which counters were made.

    Args:
        registry: The metrics; none has a timestamp or an exemplar.
        openmetrics: Whether to write OpenMetrics.
    """
    parts: list[str] = []
    for metric in registry.collect():
        parts += _head(metric, openmetrics)
        parts += metric.lines() if isinstance(metric, HistogramMetric) else _lines(metric)
    if openmetrics:
        parts.append("# EOF\n")
    return "".join(parts).encode()


def _head(metric: Metric, openmetrics: bool) -> Iterable[str]:
    name, kind, text = metric.name, metric.type, metric.documentation
    if not openmetrics:
        name += PLAIN_SUFFIXES.get(kind, "")
        kind = PLAIN_TYPES.get(kind, kind)
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    if openmetrics:
        text = text.replace('"', r"\"")
    yield f"# HELP {name} {text}\n"
    yield f"# TYPE {name} {kind}\n"


def _lines(metric: Metric) -> Iterator[str]:
    created = f"{metric.name}_created"
    for sample in metric.samples:
        if sample.name != created:
            series = series_text(sample.name, tuple(sample.labels.items()))
            yield f"{series} {number_text(sample.value)}\n"
