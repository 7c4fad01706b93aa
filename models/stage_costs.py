"""What a batch costs at each stage, by its size: from a profile, a measurement, or a table."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

WORTHWHILE = 0.9  # of a row's time at the size before


class CostLine(NamedTuple):
    """A batch of n rows costs about `row_ms * n + batch_ms`; one entry a stage, (K,) both."""

    row_ms: Array
    batch_ms: Array


@dataclass(frozen=True)
class StageCosts:
    """Milliseconds of one batch through each stage, its exit head and the policy included.

    Attributes:
        batch_sizes: Rising, from 1, (B,).
        stages_ms: (K, B).
    """

    batch_sizes: tuple[int, ...]
    stages_ms: Array

    def __post_init__(self) -> None:
        sizes = self.batch_sizes
        if not sizes or sizes[0] != 1 or any(a >= b for a, b in itertools.pairwise(sizes)):
            raise ValueError(f"batch_sizes is {list(sizes)}; give rising sizes that start at 1")
        if self.stages_ms.ndim != 2 or self.stages_ms.shape[1] != len(sizes):
            raise ValueError(
                f"stages_ms has the shape {self.stages_ms.shape}; give one row a stage, each with "
                f"{len(sizes)} times, one a batch size"
            )
        if not (np.isfinite(self.stages_ms).all() and (self.stages_ms >= 0).all()):
            raise ValueError("stages_ms holds times that are negative, NaN or infinite")

    @classmethod
    def of_exits(cls, costs_ms: Sequence[float], free_rows: int = 1) -> "StageCosts":
        """A table from the latency of one row until each exit.

        Args:
            costs_ms: Rising, (K,).
            free_rows: A batch of up to so many rows costs what one does; a larger one grows in
                proportion. 1 is a CPU, more an accelerator that a row does not fill.
        """
        stages_ms = np.diff(np.asarray(costs_ms, float), prepend=0.0)
        if (stages_ms < 0).any():
            raise ValueError(f"costs are {list(costs_ms)}; give rising milliseconds, one an exit")
        if free_rows < 1:
            raise ValueError(f"free_rows is {free_rows}; give 1 or more")
        sizes = sorted({1, free_rows, 2 * free_rows})
        factors = [max(size / free_rows, 1.0) for size in sizes]
        return cls(tuple(sizes), stages_ms[:, None] * np.array(factors))

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.stages_ms)

    @property
    def costs_ms(self) -> Array:
        """Latency of one row until each exit, (K,)."""
        costs: Array = self.stages_ms[:, 0].cumsum()
        return costs

    def batch_ms(self, stage: int, rows: int) -> float:
        """One batch through a stage, in between and beyond the sizes by straight lines."""
        sizes, times = self.batch_sizes, self.stages_ms[stage]
        if rows <= sizes[-1]:
            return float(np.interp(rows, sizes, times))
        before = (0, 0.0) if len(sizes) == 1 else (sizes[-2], float(times[-2]))
        slope = (float(times[-1]) - before[1]) / (sizes[-1] - before[0])
        return float(times[-1]) + max(slope, 0.0) * (rows - sizes[-1])

    def table_ms(self, max_batch: int) -> Array:
        """Milliseconds of a batch of 0 to `max_batch` rows at each stage, (K, max_batch + 1)."""
        sizes = range(1, max_batch + 1)
        rows = [
            [0.0, *(self.batch_ms(stage, size) for size in sizes)]
            for stage in range(self.num_exits)
        ]
        return np.array(rows)

    def line(self) -> CostLine:
        """The least-squares lines through each stage's times."""
        if len(self.batch_sizes) == 1:
            return CostLine(self.stages_ms[:, 0].copy(), np.zeros(self.num_exits))
        row_ms, batch_ms = np.polyfit(self.batch_sizes, self.stages_ms.T, 1)
        return CostLine(row_ms, batch_ms)

    def worthwhile_rows(self) -> int:
        """The largest size that is worth its wait: each up to it saves a tenth of a row's time."""
        row_ms = self.stages_ms.sum(0) / self.batch_sizes
        worth = 0
        while worth + 1 < len(row_ms) and row_ms[worth + 1] <= WORTHWHILE * row_ms[worth]:
            worth += 1
        return self.batch_sizes[worth]

    def rows_within(self, budget_ms: float, limit: int) -> int:
        """The largest size up to a limit that leaves at exit 0 within a budget; at least 1."""
        sizes = [limit, *(size for size in reversed(self.batch_sizes) if size < limit)]
        return next((size for size in sizes if self.batch_ms(0, size) <= budget_ms), 1)

    def to_json(self) -> dict[str, Any]:
        """What `read_stage_costs` reads."""
        return {
            "batch_sizes": list(self.batch_sizes),
            "stages_ms": self.stages_ms.round(4).tolist(),
        }


def read_stage_costs(path: Path) -> StageCosts:
    """Read a table of costs, or the profile of a bundle.

    Args:
        path: JSON of `batch_sizes (B,)` and `stages_ms (K, B)`, or a `profile.json`, which holds
            them too.

    Raises:
        ValueError: If it cannot be read, naming it and what is wrong.
    """
    try:
        content = json.loads(path.read_text())
        sizes = tuple(int(size) for size in content["batch_sizes"])
        return StageCosts(sizes, np.array(content["stages_ms"], float))
    except (OSError, KeyError, TypeError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is no table of costs: {what}; it needs batch_sizes [1, 2, ...] and stages_ms, "
            f"one row a stage"
        ) from error
