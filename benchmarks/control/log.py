"""The log of every sample while a budget was held, which all figures are made of."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ControlLog:
    """N samples in order of completion.

    Attributes:
        admitted_s: Time of its arrival, from the start, (N,).
        done_s: Time of its prediction, (N,).
        latency_ms: Latency in the measure under control, (N,).
        exit: Exit it took, (N,).
        correct: Whether the prediction was right, 0 or 1, (N,); -1: unknown.
        budget_ms: Budget in force at its arrival, (N,).
        parameter: Parameter in force at its prediction, (N,).
        floor_ms: Expected latency then of a sample that leaves at exit 0, (N,).
        ceiling_ms: Expected latency then of one that runs to the end, or the most that the policy
            can use under the budget, (N,).
        phase: Phase of the scenario in which it arrived, (N,).
        about: Subject, law, scenario and settings of the run.
    """

    admitted_s: Array
    done_s: Array
    latency_ms: Array
    exit: NDArray[np.int8]
    correct: NDArray[np.int8]
    budget_ms: Array
    parameter: Array
    floor_ms: Array
    ceiling_ms: Array
    phase: NDArray[np.int8]
    about: Mapping[str, Any]

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in columns()}
        if set(shapes.values()) != {(len(self.done_s),)}:
            raise ValueError(f"the columns of a log have shapes that disagree: {shapes}")

    def __len__(self) -> int:
        return len(self.done_s)


def columns() -> list[str]:
    """Names of the arrays."""
    return [each.name for each in fields(ControlLog) if each.name != "about"]


def save_logs(logs: list[ControlLog], path: Path) -> None:
    """Write logs into one npz file, in single precision: a microsecond of a minute."""
    arrays: dict[str, Any] = {}
    for place, log in enumerate(logs):
        for name in columns():
            column = getattr(log, name)
            arrays[f"{place}_{name}"] = column if column.dtype == np.int8 else column.astype("f4")
    about = json.dumps([dict(log.about) for log in logs])
    np.savez_compressed(path, allow_pickle=False, about=np.array(about), **arrays)


def load_logs(path: Path) -> list[ControlLog]:
    """Read what `save_logs` wrote.

    Raises:
        ValueError: If the file contains no logs.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            described = json.loads(str(arrays["about"]))
            return [
                ControlLog(
                    **{name: _column(arrays[f"{place}_{name}"]) for name in columns()}, about=about
                )
                for place, about in enumerate(described)
            ]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no logs of control: {error}") from error


def _column(stored: NDArray[Any]) -> NDArray[Any]:
    return stored if stored.dtype == np.int8 else stored.astype(np.float64)
