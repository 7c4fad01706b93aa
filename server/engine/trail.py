"""What a sample chosen for the audit leaves behind."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.backend import Part

LogProbs = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class AuditTrace:
    """What an audited row shows on its way, and where it stands.

    Attributes:
        key: The caller's own; the engine never looks at it.
        passed: Per exit that it has been through, what that said of it, (C,) or (P, C); where the
            exit was left out, the row after that stage, to be asked later.
        stands: The row after the last of these stages, until it goes on as another.
        exit: Where it left; None before.
        parameter: That it left under, its own or the one in force.
    """

    key: int
    exit_outputs: list[LogProbs | Part] = field(default_factory=list)
    resume_from: Part | None = None
    exit: int | None = None
    parameter: float = math.nan


class AuditResult(NamedTuple):
    """A trail that has ended, and what all exits say, (K, C) or (K, P, C); None: it was lost."""

    trail: AuditTrace
    log_probs: LogProbs | None
