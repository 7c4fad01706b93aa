"""One request on its way through the engine, and its prediction."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.backend import HeadOutput, Part, State
from server.engine.active_policy import ActivePolicy
from server.errors import ServeError

PRIORITIES = 4
AUDIT = PRIORITIES  # the priority below all others: audited rows that no client waits for
Shape = tuple[tuple[int, ...], ...]
"""The shapes of one row's arrays; rows of different shapes never share a batch."""
LogProbs = NDArray[np.float32]
NO_HISTORY: NDArray[np.float64] = np.empty((1, 0))


class ExitTrace(NamedTuple):
    """Outputs of one exit for one traced request.

    Attributes:
        exit: k, 0-based.
        log_probs: Log-probabilities of the classes it would answer with, (C,) or (P, C).
        score: The policy's exit score.
        threshold: The threshold that the score was compared with; +inf where the exit never fires.
        elapsed_ms: Compute time up to and including this exit.
    """

    exit: int
    log_probs: LogProbs
    score: float
    threshold: float
    elapsed_ms: float


class StageTiming(NamedTuple):
    """When a stage ran for a request; times on the engine's clock.

    Attributes:
        stage: k, 0-based.
        ready_s: When the request began to wait for it.
        started_s: When its batch began.
        ended_s: When its batch was through, head and policy included.
        rows: Rows of that batch.
    """

    stage: int
    ready_s: float
    started_s: float
    ended_s: float
    rows: int


class Prediction(NamedTuple):
    """The result of a request that left at an exit.

    Attributes:
        exit: The exit it left at, 0-based.
        batch_output: That exit's logits and log-probabilities of the batch that it left in, (A, C);
            where exits are combined, those of the combination.
        place: Its row there.
        compute_ms: Wall time of the batches it was in, heads and policy included.
        queue_ms: Time it waited for workers.
        late: Whether its deadline had passed.
        trace: One entry per exit passed; None unless asked for.
    """

    exit: int
    batch_output: HeadOutput
    place: int
    compute_ms: float
    queue_ms: float
    late: bool
    trace: list[ExitTrace] | None

    @property
    def output(self) -> HeadOutput:
        """The logits and log-probabilities of this row alone, (C,)."""
        logits, log_probs = self.batch_output
        return HeadOutput(logits[self.place], log_probs[self.place])


@dataclass(slots=True, eq=False)
class AuditTrace:
    """Outputs of every exit head, not combined, for one audited request.

    Attributes:
        key: The caller's own; the engine never reads it.
        at_once: Whether the heads run with the request's stages, so that the audit ends as soon as
            the request has reached the last exit.
        exit_outputs: One entry per exit passed: its log-probabilities of the row, (C,) or (P, C);
            or, where the exit head was skipped, the row after that stage, for the head to run on
            later.
        resume_from: The row after the last of these stages, until a shadow request takes over.
        exit: The exit at which the request left; None before it has.
        parameter: The policy parameter under which it left, its own or the active one.
    """

    key: int
    at_once: bool = False
    exit_outputs: list[LogProbs | Part] = field(default_factory=list)
    resume_from: Part | None = None
    exit: int | None = None
    parameter: float = math.nan


class AuditResult(NamedTuple):
    """A finished audit: all exits' log-probabilities, (K, C) or (K, P, C); None if it failed."""

    trace: AuditTrace
    log_probs: LogProbs | None


@dataclass(slots=True, eq=False)
class InferenceRequest:
    """One sample from its arrival to its prediction.

    Attributes:
        state: Arrays of the batch it last went through a stage with; at first its input, alone or
            with those of other requests.
        parameter: This request's own policy parameter; None: the active one.
        deadline_s: When its answer must be out, on the engine's clock; None: no deadline.
        priority: 0 goes first, 3 last; AUDIT after all of them.
        traced: Whether to keep the outputs of each exit.
        streamed: Whether to hand over the output of each exit at once; such a request is traced.
        policy: Policy snapshot used for this request's lifetime; None: the engine's current one at
            submission.
        policy_version: The caller's number of that policy; the engine never reads it.
        audit: Set if the request was chosen for an audit.
        on_done: Completion callback of the caller, who is handed finished requests a batch at a
            time; the engine never calls it.
        on_exit: Callback of the caller for the output of each exit; the engine never calls it.
        result: Set before the request is handed over.
        request_id: The caller's name for it; None if nobody will ask for it by name.
        owner: Who may give feedback on it; the engine never reads it.
        received_s: When the caller received it, on the engine's clock.
        decode_ms: Time it took to make `state`; None if the caller sent arrays.
        decoded_s: When that was done, on the engine's clock.
        trace_id: The trace that it is part of, if anybody records that; the engine never reads it.
        timings: Filled while it runs, one for each stage; None: nobody will ask for them.
        truncated: Whether the caller cut the input.
        tokens: Tokens of its text; 0 if it was none.
        image_size: Width and height of the image it came from, upright; None if it was none.
        unknown_share: Share of a text's tokens that stand for what the model does not know.
        counts_for_budget: Whether its latency counts for the rolling mean.
        total_ms: From `received_s` until the result was handed back; set by the caller.
        place: Its row in `state`, `history` and `memory`.
        history: The policy's memory of that batch, (A, H).
        memory: The combiner's memory of that batch, (A, M), where a combination reads it.
        shape: Shapes of its input.
        run_to_end: Whether a head that the policy would read later was skipped, so that the
            request runs to the last exit.
        cancelled: Nobody waits for it any more.
        stage: The stage it waits for or is in.
        arrived_s: When it entered the engine.
        ready_s: When it last became ready for its stage.
        compute_ms: Wall time of the batches it was in so far.
        queue_ms: Time it waited for workers so far.
        trace: Filled while it runs, if `traced`.
    """

    state: State = ()
    parameter: float | None = None
    deadline_s: float | None = None
    priority: int = 1
    traced: bool = False
    streamed: bool = False
    policy: ActivePolicy | None = None
    policy_version: int = 0
    audit: AuditTrace | None = None
    on_done: Callable[[], None] | None = None
    on_exit: Callable[[ExitTrace], None] | None = None
    result: Prediction | ServeError | None = None
    request_id: str | None = None
    owner: int = 0
    received_s: float = 0.0
    decode_ms: float | None = None
    decoded_s: float = 0.0
    trace_id: str | None = None
    timings: list[StageTiming] | None = None
    truncated: bool = False
    tokens: int = 0
    image_size: tuple[int, int] | None = None
    unknown_share: float = 0.0
    counts_for_budget: bool = True
    total_ms: float = 0.0
    place: int = 0
    history: NDArray[np.float64] = field(default_factory=lambda: NO_HISTORY)
    memory: NDArray[np.float64] = field(default_factory=lambda: NO_HISTORY)
    shape: Shape = ()
    run_to_end: bool = False
    cancelled: bool = False
    stage: int = 0
    arrived_s: float = 0.0
    ready_s: float = 0.0
    compute_ms: float = 0.0
    queue_ms: float = 0.0
    trace: list[ExitTrace] = field(default_factory=list)


Shown = list[tuple[InferenceRequest, ExitTrace]]
"""Streamed requests of a batch, each with the output of the exit that it has just passed."""
