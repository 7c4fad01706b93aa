"""Cost of a batch at each stage, by batch size: read from a profile or built from a table."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

WORTHWHILE = 0.9  # a larger batch must cut the time per row to this share, or it is not worth it


class CostLine(NamedTuple):
    """Linear cost model, (K,) both: a batch of n rows costs about `row_ms * n + batch_ms`."""

    row_ms: Array
    batch_ms: Array


@dataclass(frozen=True)
class StageCosts:
    """Time of one batch through each stage, including the exit head and the policy.

    Attributes:
        batch_sizes: Batch sizes, increasing from 1, (B,).
        stages_ms: Milliseconds by stage and batch size, (K, B).
    """

    batch_sizes: tuple[int, ...]
    stages_ms: Array

    def __post_init__(self) -> None:
        sizes = self.batch_sizes
        if not sizes or sizes[0] != 1 or any(a >= b for a, b in itertools.pairwise(sizes)):
            raise ValueError(f"batch_sizes is {list(sizes)}; give rising sizes that start at 1")
        if self.stages_ms.ndim != 2 or self.stages_ms.shape[1] != len(sizes):
            raise ValueError(
                f"stages_ms has the shape {self.stages_ms.shape}; give one row per stage, each "
                f"with {len(sizes)} times, one per batch size"
            )
        if not (np.isfinite(self.stages_ms).all() and (self.stages_ms >= 0).all()):
            raise ValueError(
                "stages_ms holds times that are negative, NaN or infinite; give milliseconds of 0 "
                "or more"
            )

    @classmethod
    def of_exits(cls, costs_ms: Sequence[float], free_rows: int = 1) -> "StageCosts":
        """Build a table from the latency of one row until each exit.

        Args:
            costs_ms: Latency until each exit, increasing, (K,).
            free_rows: Batches of up to this many rows cost as much as one row; the cost of larger
                ones grows in proportion. 1 models a CPU, more an accelerator that one row does not
                fill.

        Raises:
            ValueError: If the costs decrease, or `free_rows` is below 1.
        """
        stages_ms = np.diff(np.asarray(costs_ms, float), prepend=0.0)
        if (stages_ms < 0).any():
            raise ValueError(f"costs are {list(costs_ms)}; give rising milliseconds, one per exit")
        if free_rows < 1:
            raise ValueError(f"free_rows is {free_rows}; give 1 or more")
        sizes = sorted({1, free_rows, 2 * free_rows})
        factors = [max(size / free_rows, 1.0) for size in sizes]
        return cls(tuple(sizes), stages_ms[:, None] * np.array(factors))

    @property
    def num_exits(self) -> int:
        """Number of exits, K."""
        return len(self.stages_ms)

    @property
    def costs_ms(self) -> Array:
        """Latency of one row until each exit, (K,)."""
        costs: Array = self.stages_ms[:, 0].cumsum()
        return costs

    def batch_ms(self, stage: int, rows: int) -> float:
        """Time of one batch through a stage; linear between and beyond the table's sizes."""
        sizes, times = self.batch_sizes, self.stages_ms[stage]
        if rows <= sizes[-1]:
            return float(np.interp(rows, sizes, times))
        size, time = (0, 0.0) if len(sizes) == 1 else (sizes[-2], float(times[-2]))
        slope = (float(times[-1]) - time) / (sizes[-1] - size)
        return float(times[-1]) + max(slope, 0.0) * (rows - sizes[-1])

    def table_ms(self, max_batch: int) -> Array:
        """Tabulate the time of 0 to `max_batch` rows at each stage, (K, max_batch + 1)."""
        sizes = range(1, max_batch + 1)
        rows = [
            [0.0, *(self.batch_ms(stage, size) for size in sizes)]
            for stage in range(self.num_exits)
        ]
        return np.array(rows)

    def line(self) -> CostLine:
        """Fit a least-squares line to each stage's times."""
        if len(self.batch_sizes) == 1:
            return CostLine(self.stages_ms[:, 0].copy(), np.zeros(self.num_exits))
        row_ms, batch_ms = np.polyfit(self.batch_sizes, self.stages_ms.T, 1)
        return CostLine(row_ms, batch_ms)

    def worthwhile_rows(self) -> int:
        """Find the largest size up to which each step saves a tenth of the time per row."""
        row_ms = self.stages_ms.sum(0) / self.batch_sizes
        index = 0
        while index + 1 < len(row_ms) and row_ms[index + 1] <= WORTHWHILE * row_ms[index]:
            index += 1
        return self.batch_sizes[index]

    def rows_within(self, budget_ms: float, limit: int) -> int:
        """Find the largest size up to a limit that reaches exit 0 within a budget; at least 1."""
        sizes = [limit, *(size for size in reversed(self.batch_sizes) if size < limit)]
        return next((size for size in sizes if self.batch_ms(0, size) <= budget_ms), 1)

    def to_json(self) -> dict[str, Any]:
        """Return the content of a file for `read_stage_costs`."""
        return {
            "batch_sizes": list(self.batch_sizes),
            "stages_ms": self.stages_ms.round(4).tolist(),
        }


def read_stage_costs(path: Path) -> StageCosts:
    """Read a table of stage costs, or the profile of a bundle.

    Args:
        path: JSON with `batch_sizes` (B,) and `stages_ms` (K, B). A bundle's `profile.json` holds
            them too.

    Raises:
        ValueError: If the file cannot be read; the message names it and the fault.
    """
    try:
        content = json.loads(path.read_text())
        sizes = tuple(int(size) for size in content["batch_sizes"])
        return StageCosts(sizes, np.array(content["stages_ms"], float))
    except (OSError, KeyError, TypeError, ValueError) as error:
        fault = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is not a table of stage costs: {fault}; it needs batch_sizes [1, 2, ...] and "
            f"stages_ms, one row per stage"
        ) from error
