"""A sample on its way through the engine, and what comes of it."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.backend import HeadOutput, State
from server.engine.active_policy import ActivePolicy
from server.engine.trail import AuditTrace
from server.errors import ServeError

PRIORITIES = 4
AUDIT = PRIORITIES  # a level below: of rows that nobody waits for
Shape = tuple[tuple[int, ...], ...]  # of one row's arrays


class ExitTrace(NamedTuple):
    """What a row showed at one exit; `threshold` is +inf where the exit never fires."""

    exit: int
    log_probs: NDArray[np.float32]
    score: float
    threshold: float
    elapsed_ms: float


class Prediction(NamedTuple):
    """A completed row.

    Attributes:
        exit: Where it left.
        said: By that exit, of this row alone: logits and log-probabilities (C,).
        compute_ms: Wall time of the batches it was in, heads and policy included.
        queue_ms: Time it waited for workers.
        late: Whether its deadline had passed.
        trace: One entry per exit passed, None unless asked for.
    """

    exit: int
    said: HeadOutput
    compute_ms: float
    queue_ms: float
    late: bool
    trace: list[ExitTrace] | None


@dataclass(slots=True, eq=False)
class InferenceRequest:
    """One sample on its way.

    Attributes:
        state: Of the batch that it last went through a stage with; at first its input, of one row.
        tag: The caller's own; the engine never looks at it.
        parameter: The policy's parameter of this row alone, or None for the one in force.
        deadline_s: On the engine's clock, or None.
        priority: 0 goes first, 3 last; AUDIT behind all of them.
        traced: Keep what it showed at each exit.
        under: The policy that it entered with and keeps; None: the engine's at its entry.
        trail: Of a row that was chosen for the audit.
        place: Which row of `state` and `history` it is.
        history: The policy's, of the same batch, (A, H).
        shape: Of its input: rows of other shapes never share a batch with it.
        blind: Whether an exit whose answer the policy needs later was left out, so that this row
            runs to the end.
        cancelled: Nobody waits for it any more.
        arrived_s: When it came into the engine.
    """

    state: State
    tag: object = None
    parameter: float | None = None
    deadline_s: float | None = None
    priority: int = 1
    traced: bool = False
    policy: ActivePolicy | None = None
    audit: AuditTrace | None = None
    place: int = 0
    history: NDArray[np.float64] = field(default_factory=lambda: np.empty((1, 0)))
    shape: Shape = ()
    run_to_end: bool = False
    cancelled: bool = False
    stage: int = 0
    arrived_s: float = 0.0
    ready_s: float = 0.0
    compute_ms: float = 0.0
    queue_ms: float = 0.0
    trace: list[ExitTrace] = field(default_factory=list)


class Completion(NamedTuple):
    """A row and what came of it."""

    row: InferenceRequest
    outcome: Prediction | ServeError
