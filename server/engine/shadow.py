"""Shadow inference: audited requests continue to the last exit after they were answered."""

import logging
from collections.abc import Callable

import numpy as np

from models.backend import HeadOutput, Part, StageBackend, State
from server.engine.request import (
    AUDIT,
    AuditResult,
    AuditTrace,
    InferenceRequest,
    LogProbs,
    Prediction,
)
from server.engine.step import gather_requests

log = logging.getLogger(__name__)


class ShadowRunner:
    """Takes audited requests on, a stage at a time, below the priority of every user.

    A shadow is a request of its own: the answer is out, and no policy is asked any more. The
    engine's workers call; every shadow that starts is reported exactly once.

    Args:
        backend: Runs stages and heads.
        put: Lets shadows wait for their stage, below all others.
        on_audit: Receives every shadow that has reached the last exit or was lost.
    """

    def __init__(
        self,
        backend: StageBackend,
        put: Callable[[list[InferenceRequest]], None],
        on_audit: Callable[[AuditResult], None],
    ) -> None:
        self._backend = backend
        self._put = put
        self._on_audit = on_audit
        self._stopped = False

    def stop(self) -> None:
        """Drop shadows from now on instead of running them further."""
        self._stopped = True

    def start(self, finished: list[InferenceRequest]) -> None:
        """Start a shadow for each audited request among those that have been answered."""
        for request in finished:
            if request.audit is not None and isinstance(request.result, Prediction):
                request.audit.exit = request.result.exit
                self._guarded([_shadow_request(request, request.audit)], self._start)

    def advance(self, shadows: list[InferenceRequest]) -> None:
        """Run the stage that shadows wait for, or the heads that were skipped on their way."""
        passed = len(_audit(shadows[0]).exit_outputs)
        act = self._finish if passed == self._backend.num_exits else self._step
        self._guarded(shadows, act)

    def _guarded(
        self, shadows: list[InferenceRequest], act: Callable[[list[InferenceRequest]], None]
    ) -> None:
        """Report every shadow exactly once, even if the step raises."""
        try:
            if not self._stopped:
                act(shadows)
                return
        except Exception:
            stage = shadows[0].stage
            log.exception("the audit of %d requests failed at stage %d", len(shadows), stage)
        for shadow in shadows:
            self._on_audit(AuditResult(_audit(shadow), None))

    def _start(self, shadows: list[InferenceRequest]) -> None:
        (shadow,) = shadows
        if shadow.stage < self._backend.num_exits:
            self._put(shadows)
        elif any(isinstance(output, Part) for output in _audit(shadow).exit_outputs):
            # Only heads are left to run, so it must not share a batch with those that wait for
            # this stage: no other request has an empty shape.
            shadow.stage, shadow.shape = shadow.stage - 1, ()
            self._put(shadows)
        else:
            self._finish(shadows)

    def _step(self, shadows: list[InferenceRequest]) -> None:
        stage = shadows[0].stage
        state = self._backend.run_stage(stage, gather_requests(shadows, self._backend))
        log_probs = self._backend.run_head(stage, state).log_probs
        for place, shadow in enumerate(shadows):
            shadow.state, shadow.place = state, place
            shadow.stage += 1
            _audit(shadow).exit_outputs.append(log_probs[place])
        if stage + 1 < self._backend.num_exits:
            self._put(shadows)
        else:
            self._finish(shadows)

    def _finish(self, shadows: list[InferenceRequest]) -> None:
        results = [
            AuditResult(_audit(shadow), self._all_outputs(_audit(shadow))) for shadow in shadows
        ]
        for result in results:
            self._on_audit(result)

    def _all_outputs(self, audit: AuditTrace) -> LogProbs:
        """Return every exit's log-probabilities, running the heads that were skipped."""
        outputs = [
            self._backend.run_head(exit, self._backend.gather([output])).log_probs[0]
            if isinstance(output, Part)
            else output
            for exit, output in enumerate(audit.exit_outputs)
        ]
        return np.stack(outputs)


def record_exit(
    audit: AuditTrace, place: int, state: State, head: HeadOutput | None, parameter: float
) -> None:
    """Record what an audited request showed at a stage it passed among users' requests.

    Args:
        audit: Where to record it.
        place: The request's row in the batch.
        state: The batch after the stage.
        head: The exit head's own output of the batch; None where the head was skipped.
        parameter: The policy parameter the request obeyed there.
    """
    audit.resume_from = here = Part(state, [place])
    audit.exit_outputs.append(here if head is None else head.log_probs[place])
    audit.parameter = parameter


def _shadow_request(answered: InferenceRequest, audit: AuditTrace) -> InferenceRequest:
    """Return the request that continues for one that has been answered."""
    assert audit.resume_from is not None, "an answered request has been through a stage"
    state, (place,) = audit.resume_from
    audit.resume_from = None
    return InferenceRequest(
        state,
        priority=AUDIT,
        audit=audit,
        place=place,
        shape=answered.shape,
        stage=len(audit.exit_outputs),
        arrived_s=answered.arrived_s,
    )


def _audit(request: InferenceRequest) -> AuditTrace:
    assert request.audit is not None, "only audited requests have shadows"
    return request.audit
