"""Batches of the sizes that a device prefers."""

from collections.abc import Sequence

from models.backend import Part


def padded(parts: Sequence[Part], buckets: Sequence[int]) -> list[Part]:
    """The parts with the last row repeated, so that all their rows fill the next bucket.

    Args:
        parts: Rows of batches.
        buckets: Batch sizes, rising; more rows than the largest stay as they are.
    """
    rows = sum(len(part.rows) for part in parts)
    missing = next((size for size in buckets if size >= rows), rows) - rows
    if not missing:
        return list(parts)
    *others, last = parts
    return [*others, last._replace(rows=[*last.rows, *[last.rows[-1]] * missing])]


def check_buckets(buckets: Sequence[int]) -> tuple[int, ...]:
    """The buckets, checked.

    Raises:
        ValueError: If they do not rise from 1 or more.
    """
    sizes = tuple(buckets)
    if any(a >= b for a, b in zip((0, *sizes), sizes, strict=False)):
        raise ValueError(f"buckets is {list(sizes)}; give rising batch sizes of 1 or more")
    return sizes
