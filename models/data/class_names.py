"""Names of classes: their order, and names that may be meant as one or as no class at all."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

MISSING_NAMES = frozenset(
    {"nan", "na", "n/a", "<na>", "nat", "none", "null", "nil", "undefined", "missing", "?", "-"}
)
POINT_ZERO = re.compile(r"([+-]?\d+)\.0*")
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)
GAPS = re.compile(r"[\s_\-]+")


def sort_classes(names: set[str]) -> tuple[str, ...]:
    """Sort names by value if all of them are integers, else as texts."""
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def unify_numbers(counts: Mapping[str, int]) -> dict[str, str]:
    """Return the whole numbers that are also written with a point, as in 1.0, by that spelling.

    Spreadsheets and pandas write 1.0 for 1 once a value of the column is absent.
    """
    unified = {}
    for name in counts:
        match = POINT_ZERO.fullmatch(name)
        if match and str(int(match[1])) in counts:
            unified[name] = str(int(match[1]))
    return unified


def comparable(name: str) -> str:
    """Reduce a name to what tells classes apart: no case, outer space, or form of a number."""
    plain = unicodedata.normalize("NFKC", name).strip()
    if NUMBER.fullmatch(plain):
        return f"{float(plain):g}" if abs(float(plain)) < 1e15 else plain
    return GAPS.sub(" ", plain).casefold()


def similar_names(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the groups of names that differ only in case, space or the form of a number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(comparable(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def name_warnings(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield a sentence for each group of classes that may be one, and each that may be none.

    Args:
        counts: Rows of each class.
    """
    for group in similar_names(list(counts)):
        named = ", ".join(f"{name!r} ({counts[name]} rows)" for name in group)
        yield (
            f"classes {named} differ only in case, space or number format; give them one name if "
            f"they are one class"
        )
    for name, rows in Counter(counts).items():
        if name.strip().casefold() in MISSING_NAMES or not name.strip():
            yield (
                f"class {name!r} ({rows} rows) looks like an absent label; remove these rows, or "
                f"rename the class"
            )
