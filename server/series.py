"""Series of metrics and their values as text."""

import functools

from prometheus_client.utils import floatToGoString

Labels = tuple[tuple[str, str], ...]


def number_text(value: float) -> str:
    """Return a value as Prometheus' own programs write it."""
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


@functools.lru_cache(1 << 14)
def series_text(name: str, labels: Labels) -> str:
    """Return the name of a series with its labels."""
    if not labels:
        return name
    return f"{name}{{{','.join([label_text(*label) for label in sorted(labels)])}}}"


def label_text(name: str, value: str) -> str:
    """Return a label, its value escaped."""
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{name}="{escaped}"'


@functools.lru_cache(1 << 12)
def bucket_texts(name: str, labels: Labels, bounds: tuple[str, ...]) -> tuple[str, ...]:
    """Return the series of a histogram's buckets, by their upper bounds."""
    return tuple([series_text(f"{name}_bucket", (*labels, ("le", bound))) for bound in bounds])
