"""What the parts of a served model tell each other: columns of numbers, one report for many rows.

Fronts and engines report to control; control tells fronts the terms under which requests enter. In
one process these are arguments of calls, between processes they are messages.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bundle import Precision
from models.stage_costs import StageCosts
from scheduler.control.controller import Sample
from scheduler.frontier import ROUNDING

Floats = NDArray[np.float64]
NO_FAILURES: Floats = np.empty(0)


class RunnerFacts(NamedTuple):
    """What an engine has found out about its network on this host.

    Attributes:
        precision: The precision that the network computes in.
        device: The device that runs it.
        costs: What batches cost at each stage.
        workers: Threads that run batches.
    """

    precision: Precision
    device: str
    costs: StageCosts
    workers: int


class Exemplar(NamedTuple):
    """An answered request whose trace is recorded.

    Attributes:
        place: Its row in `Answers`.
        trace_id: The trace.
        stages_ms: Each stage that it went through, and what its batch took there.
    """

    place: int
    trace_id: str
    stages_ms: Sequence[tuple[int, float]]


class Answers(NamedTuple):
    """N answered requests of one model, as their front saw them.

    Attributes:
        keys: Hash of each request's id, 0 if it has none, int64 (N,).
        exits: Exit that it left at, int64 (N,).
        class_ids: Predicted class, int64 (N,).
        compute_ms: Wall time of the batches it was in, (N,).
        queue_ms: Time it waited for workers, (N,).
        total_ms: From its headers until the answer was ready, (N,).
        decode_ms: Time from bytes to arrays; NaN if it came as arrays, (N,).
        counts_for_budget: Whether it counts for the rolling mean, bool (N,).
        exemplars: Those whose traces are recorded.
        failed_ms: Of each of F further requests, which failed, the time until then, (F,).
    """

    keys: NDArray[np.int64]
    exits: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    compute_ms: Floats
    queue_ms: Floats
    total_ms: Floats
    decode_ms: Floats
    counts_for_budget: NDArray[np.bool_]
    exemplars: Sequence[Exemplar] = ()
    failed_ms: Floats = NO_FAILURES

    def compute_samples(self) -> list[Sample]:
        """Return the samples that count for a budget of compute time."""
        counted = self.counts_for_budget
        exits, compute_ms = self.exits[counted].tolist(), self.compute_ms[counted].tolist()
        return [Sample(exit, ms, 0.0) for exit, ms in zip(exits, compute_ms, strict=True)]

    def end_to_end_samples(self) -> list[Sample]:
        """Return the samples that count for a budget of end-to-end latency."""
        counted = self.counts_for_budget
        columns = (self.exits, self.compute_ms, self.total_ms, self.queue_ms)
        rows = zip(*[column[counted].tolist() for column in columns], strict=True)
        return [
            Sample(exit, total, max(total - own, 0.0), queue) for exit, own, total, queue in rows
        ]


class ExitScores(NamedTuple):
    """The scores (A,) of a batch at an exit, and the policy parameter it ran under."""

    exit: int
    scores: Floats
    parameter: float


class AuditOutcome(NamedTuple):
    """An audited sample with the own outputs of every exit head.

    Attributes:
        key: Hash of its request's id.
        policy_version: The policy that it entered under.
        exit: Exit of its prediction.
        parameter: Parameter of the policy that it left under.
        log_probs: (K, C); for a segmentation (K, P, C).
    """

    key: int
    policy_version: int
    exit: int
    parameter: float
    log_probs: NDArray[np.float32]


class Work(NamedTuple):
    """What one engine did for one model since its last report, and how it stands.

    Attributes:
        stages: Stage of each batch, int64 (B,).
        rows: Rows of each batch, int64 (B,).
        elapsed_ms: What each batch took, head and policy included, (B,).
        scores: Scores of the batches that say something about the active policy.
        audits: Audits that have ended.
        audits_skipped: Samples that were drawn for an audit and not accepted.
        audits_cancelled: Accepted ones that got no answer, since their client left.
        audits_lost: Accepted ones whose audit failed.
        cancelled: Requests that were dropped because their client left.
        queue_depths: Requests that wait for each stage now, int64 (K,).
        oldest_wait_s: Longest time that a request has waited for its stage.
        fault: Why it cannot answer; None while it works.
        stalled: Whether only another process could.
    """

    stages: NDArray[np.int64]
    rows: NDArray[np.int64]
    elapsed_ms: Floats
    scores: list[ExitScores]
    audits: list[AuditOutcome]
    audits_skipped: int
    audits_cancelled: int
    audits_lost: int
    cancelled: int
    queue_depths: NDArray[np.int64]
    oldest_wait_s: float
    fault: str | None
    stalled: bool

    @property
    def audits_settled(self) -> int:
        """Number of accepted samples that this report tells the end of."""
        return len(self.audits) + self.audits_cancelled + self.audits_lost


class EntryTerms(NamedTuple):
    """The terms under which requests enter: a policy, and what its parameter costs at present.

    Attributes:
        policy_version: Number of the policy; each reload counts one up.
        parameters: The policy's parameter at each point of its frontier, (G,).
        costs_ms: Expected cost of each point, rising, (G,).
        slowdown: Present compute time over cost.
        overhead_ms: Present latency that is not compute time.
        renews: Whether the samples without a budget of their own all run to the last exit until
            audits of them renew the promise.
    """

    policy_version: int
    parameters: Floats
    costs_ms: Floats
    slowdown: float
    overhead_ms: float
    renews: bool

    def parameter_for(self, budget_ms: float) -> float:
        """Return the parameter for a request with its own budget."""
        cost_ms = (budget_ms - self.overhead_ms) / self.slowdown * (1 + ROUNDING)
        index = max(int(np.searchsorted(self.costs_ms, cost_ms, side="right")) - 1, 0)
        return float(self.parameters[index])
