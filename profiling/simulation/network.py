"""A network as the simulation runs it: what its stages and exit heads cost."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.stage_costs import StageCosts, read_stage_costs


class NetworkCosts(NamedTuple):
    """Costs of the stages with their exit heads, and of the heads alone.

    A server that decides at every exit runs every head. One that knows beforehand where a batch
    leaves runs the last of its heads only.
    """

    stages: StageCosts
    heads: StageCosts

    @classmethod
    def without_heads(cls, stages: StageCosts) -> "NetworkCosts":
        """Costs where those of the heads are not known, and count as nothing."""
        return cls(stages, StageCosts(stages.batch_sizes, np.zeros_like(stages.stages_ms)))

    def to_exit(self, exit: int) -> StageCosts:
        """Return the costs of the network that ends at an exit, and has no head before it."""
        stages_ms = self.stages.stages_ms[: exit + 1].copy()
        stages_ms[:exit] -= self.heads.stages_ms[:exit]
        return StageCosts(self.stages.batch_sizes, stages_ms)


def read_network_costs(profile: Path) -> NetworkCosts:
    """Read the profile of a bundle, or a table of stage costs without those of heads.

    Raises:
        ValueError: If the file cannot be read; the message names it and the fault.
    """
    stages = read_stage_costs(profile)
    rows = json.loads(profile.read_text()).get("latency_ms")
    if not isinstance(rows, dict):
        return NetworkCosts.without_heads(stages)
    try:
        heads_ms = [[head[0] for head in rows[str(size)]["heads"]] for size in stages.batch_sizes]
        heads = StageCosts(stages.batch_sizes, np.array(heads_ms, float).T)
        NetworkCosts(stages, heads).to_exit(stages.num_exits - 1)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(
            f"{profile} has no times of its heads that fit its stages; write it with eenet profile"
        ) from error
    return NetworkCosts(stages, heads)
