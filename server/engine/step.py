"""One stage for one batch: state, exit head, combination, scores, decision."""

from collections.abc import Callable
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from models.backend import HeadOutput, Part, StageBackend, State, gather_arrays
from scheduler.policy import ExitDecision
from server.engine.active_policy import PolicySnapshot
from server.engine.request import ExitTrace, InferenceRequest

Array = NDArray[np.float64]
Remembered = Callable[[InferenceRequest], Array]
_HISTORY: Remembered = attrgetter("history")
_MEMORY: Remembered = attrgetter("memory")


class StageExecutor:
    """Runs a stage, its exit head, the combiner and the policy on a batch; any thread may call.

    The requests of a batch wait for the same stage and share one policy and combiner. If the policy
    needs a skipped head's output at a later exit, the request runs to the last exit. A head that a
    combination reads is never skipped.

    Args:
        backend: Runs stages and heads.
    """

    def __init__(self, backend: StageBackend) -> None:
        self.backend = backend
        self._last = backend.num_exits - 1

    def run_stage(self, requests: list[InferenceRequest]) -> State:
        """Gather the requests' rows into one batch and run their stage on it."""
        state = gather_requests(requests, self.backend)
        return self.backend.run_stage(requests[0].stage, state)

    def needs_head(self, requests: list[InferenceRequest], snapshot: PolicySnapshot) -> bool:
        """Whether any request can leave at this exit, or needs its output later."""
        for request in requests:  # most often the first one decides
            if self._needs_head(request, snapshot):
                return True
        return False

    def run_head(self, exit: int, state: State, rows: int) -> HeadOutput:
        """Run the head of an exit on the `rows` rows of a batch after its stage."""
        output = self.backend.run_head(exit, state)
        if len(output.log_probs) > rows:  # the backend padded the batch for its device
            output = HeadOutput(output.logits[:rows], output.log_probs[:rows])
        return output

    def remember(
        self, requests: list[InferenceRequest], head: HeadOutput, snapshot: PolicySnapshot
    ) -> Array | None:
        """Return the combiner's memory of the requests at this exit; None: it needs none here."""
        exit = requests[0].stage
        if not snapshot.combines[exit]:
            return None
        return snapshot.combiner.remember(exit, head.log_probs, _gathered(requests, _MEMORY))

    def answer(
        self,
        requests: list[InferenceRequest],
        head: HeadOutput,
        memory: Array | None,
        snapshot: PolicySnapshot,
    ) -> HeadOutput:
        """Return what requests that leave here are answered with, and what the policy reads.

        The logits of a combination are its log-probabilities: both have the same softmax.
        """
        if memory is None:
            return head
        exit, log_probs = requests[0].stage, head.log_probs
        combined = snapshot.combiner.combine(exit, log_probs, memory)
        return head if combined is log_probs else HeadOutput(combined, combined)

    def decide(
        self, requests: list[InferenceRequest], answer: HeadOutput, snapshot: PolicySnapshot
    ) -> ExitDecision | None:
        """Ask the policy which requests leave; None: without scores, all do at the last exit only.

        Requests that run to the end are not scored: the policy has not seen all of their way.
        """
        exit = requests[0].stage
        if exit == self._last:
            if not any([request.traced for request in requests]):
                return None
        elif requests[0].run_to_end:
            return None
        parameters = _parameters(requests, snapshot.parameter)
        history = _gathered(requests, _HISTORY)
        return snapshot.policy.step(exit, answer.log_probs, history, parameters)

    def _needs_head(self, request: InferenceRequest, snapshot: PolicySnapshot) -> bool:
        exit = request.stage
        if exit == self._last or request.traced or request.deadline_s is not None:
            return True
        if request.audit is not None and request.audit.at_once:
            return True
        if request.run_to_end:
            return snapshot.combiner.needs(exit)
        if request.parameter is not None:
            return snapshot.combiner.needs(exit) or snapshot.policy.needs(exit, request.parameter)
        return snapshot.needs[exit]


def comparable_scores(requests: list[InferenceRequest], decision: ExitDecision) -> Array | None:
    """Scores of the requests whose way depends on the active parameter alone; None if none."""
    places = [
        place
        for place, request in enumerate(requests)
        if request.parameter is None and request.deadline_s is None and not request.run_to_end
    ]
    if len(places) == len(requests):
        return decision.scores
    return decision.scores[places] if places else None


def trace_exit(
    request: InferenceRequest, place: int, answer: HeadOutput, decision: ExitDecision
) -> ExitTrace:
    """Record what one exit showed for the request at a place of its batch."""
    threshold = decision.thresholds[place if len(decision.thresholds) > 1 else 0]
    return ExitTrace(
        request.stage,
        answer.log_probs[place],
        float(decision.scores[place]),
        float(threshold),
        request.compute_ms,
    )


def gather_requests(requests: list[InferenceRequest], backend: StageBackend) -> State:
    """Pick the requests' rows from the batches they were last in, and join them into one."""
    return backend.gather([part for part, _ in _group_by_source_batch(requests)])


def _gathered(requests: list[InferenceRequest], of: Remembered) -> Array:
    """Return what is remembered of each request: its history (A, H) or its memory (A, M)."""
    if len(requests) == 1:
        place = requests[0].place
        return of(requests[0])[place : place + 1]
    groups = _group_by_source_batch(requests)
    joined: Array
    (joined,) = gather_arrays([Part((of(first),), part.rows) for part, first in groups])
    return joined


def _group_by_source_batch(
    requests: list[InferenceRequest],
) -> list[tuple[Part, InferenceRequest]]:
    """Return the batches that the requests come from, with their rows and the first of them."""
    parts: list[tuple[Part, InferenceRequest]] = []
    state: State | None = None
    for request in requests:
        if request.state is not state:
            state, rows = request.state, list[int]()
            parts.append((Part(state, rows), request))
        rows.append(request.place)
    return parts


def _parameters(requests: list[InferenceRequest], active: float) -> Array:
    """Return each request's own parameter (A,), or the active one (1,) where all share it."""
    if all([request.parameter is None for request in requests]):
        return np.array([active])
    return np.array(
        [active if request.parameter is None else request.parameter for request in requests]
    )
