"""The text of GET /metrics: as the scraper's `Accept` header asks for it.

`prometheus_client` takes some 20 us for each line, most of it to sort and escape labels that never
change. With 20 models there are 6,800 lines. So the labels of each series become text once here.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, CONTENT_TYPE_PLAIN_1_0_0
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS

from server.histogram import HistogramMetric
from server.series import number_text, series_text

PLAIN_TYPES = {"unknown": "untyped", "info": "gauge", "stateset": "gauge"}
PLAIN_SUFFIXES = {"counter": "_total", "info": "_info"}  # of the family's name
QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


class Format(NamedTuple):
    """A format of metrics.

    Attributes:
        media_type: As the answer names it.
        kinds: The media ranges that it falls under, the most specific first.
        versions: Values of the parameter `version` that it falls under; "": none is named.
    """

    media_type: str
    kinds: tuple[str, ...]
    versions: frozenset[str]


class MediaRange(NamedTuple):
    """A part of an `Accept` header: what it stands for, and how welcome that is, 0 to 1."""

    kind: str
    version: str
    quality: float


# Of formats that are equally welcome the first is chosen, if it is named; then the second.
FORMATS: Final = (
    Format(
        OPENMETRICS,
        ("application/openmetrics-text", "application/*"),
        frozenset({"", "1.0.0", "0.0.1"}),
    ),
    Format(CONTENT_TYPE_PLAIN_1_0_0, ("text/plain", "text/*", "*/*"), frozenset({"", "1.0.0"})),
    Format(CONTENT_TYPE_PLAIN_0_0_4, ("text/plain",), frozenset({"0.0.4"})),
)
PLAIN: Final = FORMATS[1]  # for a scraper that accepts none of these


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return the text of all metrics, and its media type.

    The times at which counters were made are left out: they double the lines of counters, and
    scrapers that look at resets of counters need them not.

    Args:
        registry: Has the metrics; of its families those of `HistogramFamily` alone have exemplars.
        accept: The `Accept` header; "" without one.
    """
    media_type = choose_format(accept).media_type
    openmetrics = media_type == OPENMETRICS
    parts: list[str] = []
    for metric in registry.collect():
        parts += _head(metric, openmetrics)
        if isinstance(metric, HistogramMetric):
            parts += metric.lines(exemplars=openmetrics)
        else:
            parts += _lines(metric)
    if openmetrics:
        parts.append("# EOF\n")
    return "".join(parts).encode(), media_type


def choose_format(accept: str) -> Format:
    """Return the most welcome format; plain text if none is."""
    ranges = list(_media_ranges(accept))
    welcome = [(_quality(each, ranges), -place, each) for place, each in enumerate(FORMATS)]
    quality, _, chosen = max(welcome)
    return chosen if quality > 0 else PLAIN


def _quality(form: Format, ranges: Iterable[MediaRange]) -> float:
    """How welcome a format is: by the most specific range that it falls under."""
    for kind in form.kinds:
        found = [r.quality for r in ranges if r.kind == kind and r.version in form.versions]
        if found:
            return max(found)
    return 0.0


def _media_ranges(accept: str) -> Iterable[MediaRange]:
    """Yield the parts of an `Accept` header; those that break its rules are passed over."""
    for part in accept.lower().split(","):
        kind, *parameters = [each.strip() for each in part.split(";")]
        given = {}
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            given[name.strip()] = value.strip().strip('"')
        quality = given.get("q", "1")
        if kind and QUALITY.fullmatch(quality):
            yield MediaRange(kind, given.get("version", ""), float(quality))


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
