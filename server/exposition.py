"""The text of GET /metrics: as the scraper's `Accept` header asks for it."""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.exposition import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CONTENT_TYPE_PLAIN_1_0_0,
    generate_latest,
)
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector, CollectorRegistry

CREATED = "_created"
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
PLAIN: Final = FORMATS[1]  # for whoever accepts nothing of all this


class _WithoutCreated(Collector):
    """Metrics of a registry without the times at which each child was made.

    These double the lines of counters, and scrapers that look at resets of counters need them not.
    """

    def __init__(self, registry: Collector) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        """Yield the families."""
        for family in self._registry.collect():
            if family.type == "counter":
                family.samples = [s for s in family.samples if not s.name.endswith(CREATED)]
            yield family


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return the text of all metrics, and its media type.

    Args:
        registry: Has the metrics.
        accept: The `Accept` header; "" without one.
    """
    chosen = choose_format(accept)
    families = _WithoutCreated(registry)
    if chosen.media_type == OPENMETRICS:
        return generate_openmetrics(families), OPENMETRICS  # type: ignore[no-untyped-call]
    return generate_latest(families), chosen.media_type


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
