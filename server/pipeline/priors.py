"""Reads the prior that a scheduler is fitted for: `observed`, `uniform`, or a file of shares."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scheduler.fitting.prior import Prior

OBSERVED, UNIFORM = "observed", "uniform"


def read_prior(given: str, classes: Sequence[str]) -> Prior | None:
    """Return the prior that `--prior` names; None for the calibration rows' own shares.

    Args:
        given: `observed`, `uniform`, or the path of a file: a JSON object of the share of each
            class by its name, or one share per line, in the order of the classes.
        classes: Names of the C classes.

    Raises:
        ValueError: If the file cannot be read, or does not give each class a share.
    """
    if given == OBSERVED:
        return None
    if given == UNIFORM:
        return Prior.uniform(classes)
    try:
        text = Path(given).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--prior {given!r} is neither {OBSERVED} nor {UNIFORM} nor a file that can be read "
            f"({error})"
        ) from error
    try:
        shares = _by_name(text, classes) if text.startswith("{") else _by_line(text)
        return Prior(tuple(classes), np.array(shares))
    except ValueError as error:
        raise ValueError(f"--prior {given}: {error}") from error


def _by_name(text: str, classes: Sequence[str]) -> list[float]:
    """Read a JSON object of shares by class."""
    try:
        shares: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the file is not JSON ({error}); correct it") from error
    known = ", ".join(map(repr, classes))
    unknown = [name for name in shares if name not in classes]
    if unknown:
        raise ValueError(f"there is no class {unknown[0]!r}; the classes are {known}")
    missing = [name for name in classes if name not in shares]
    if missing:
        raise ValueError(f"class {missing[0]!r} has no share; give one for each of {known}")
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise ValueError(f"the share of class {name!r} is {share!r}; give a number")
    return [float(shares[name]) for name in classes]


def _by_line(text: str) -> list[float]:
    """Read one share per line."""
    shares = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            shares.append(float(line))
        except ValueError as error:
            raise ValueError(f"line {number} is {line!r}; give one share per line") from error
    return shares
