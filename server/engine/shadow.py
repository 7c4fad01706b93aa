"""Beyond the exit that a row was answered at: audited rows go on to the last."""

import logging
from collections.abc import Callable

import numpy as np

from models.backend import Part, StageBackend
from server.engine.request import AUDIT, Completion, InferenceRequest, Prediction
from server.engine.step import StageResult, group_by_source_batch
from server.engine.trail import AuditResult, AuditTrace, LogProbs

log = logging.getLogger(__name__)


class ShadowRunner:
    """Takes audited rows on, a stage at a time, below all priorities of users.

    They are rows of their own: what was answered is done with, and no policy is asked any more.
    Workers call; every row that begins is told of once.

    Args:
        backend: Runs stages and heads.
        put: Lets rows wait for their stage, below all others.
        tell: Told of every row that comes to the last exit or is lost.
    """

    def __init__(
        self,
        backend: StageBackend,
        put: Callable[[list[InferenceRequest]], None],
        tell: Callable[[AuditResult], None],
    ) -> None:
        self._backend = backend
        self._put = put
        self._tell = tell
        self._over = False

    def stop(self) -> None:
        """Lose rows from now on, rather than take them further."""
        self._over = True

    def start(self, completions: list[Completion]) -> None:
        """Let the audited among rows that have been answered go on."""
        for row, outcome in completions:
            if row.audit is not None and isinstance(outcome, Prediction):
                row.audit.exit = outcome.exit
                self._guarded([_further(row, row.audit)], self._begin)

    def advance(self, rows: list[InferenceRequest]) -> None:
        """Take rows through the stage that they wait for, or to the exits left out on the way."""
        last = len(_trail(rows[0]).exit_outputs) == self._backend.num_exits
        self._guarded(rows, self._end if last else self._step)

    def _guarded(
        self, rows: list[InferenceRequest], act: Callable[[list[InferenceRequest]], None]
    ) -> None:
        """Whatever happens, rows are told of, and the worker lives."""
        try:
            if not self._over:
                act(rows)
                return
        except Exception:
            log.exception("the audit of %d rows was lost at stage %d", len(rows), rows[0].stage)
        for row in rows:
            self._tell(AuditResult(_trail(row), None))

    def _begin(self, rows: list[InferenceRequest]) -> None:
        (row,) = rows
        if row.stage < self._backend.num_exits:
            self._put(rows)
        elif any(isinstance(said, Part) for said in _trail(row).exit_outputs):
            # Apart from those that wait for this stage: only heads are left to be run.
            row.stage, row.shape = row.stage - 1, ()
            self._put(rows)
        else:
            self._end(rows)

    def _step(self, rows: list[InferenceRequest]) -> None:
        stage = rows[0].stage
        state = self._backend.run_stage(
            stage, self._backend.gather([part for part, _ in group_by_source_batch(rows)])
        )
        said = self._backend.run_head(stage, state).log_probs
        for place, row in enumerate(rows):
            row.state, row.place = state, place
            row.stage += 1
            _trail(row).exit_outputs.append(said[place])
        if stage + 1 < self._backend.num_exits:
            self._put(rows)
        else:
            self._end(rows)

    def _end(self, rows: list[InferenceRequest]) -> None:
        ended = [AuditResult(_trail(row), self._all_said(_trail(row))) for row in rows]
        for each in ended:
            self._tell(each)

    def _all_said(self, trail: AuditTrace) -> LogProbs:
        """What every exit says, those included that were left out on the way."""
        said = [
            self._backend.run_head(exit, self._backend.gather([at])).log_probs[0]
            if isinstance(at, Part)
            else at
            for exit, at in enumerate(trail.exit_outputs)
        ]
        return np.stack(said)


def record_exit(trail: AuditTrace, row: InferenceRequest, place: int, output: StageResult) -> None:
    """Note what an audited row shows at a stage that it passes with a batch of users."""
    trail.resume_from = here = Part(output.state, [place])
    shown = output.shown
    trail.exit_outputs.append(here if shown is None else shown.said.log_probs[place])
    trail.parameter = output.parameter if row.parameter is None else row.parameter


def _further(row: InferenceRequest, trail: AuditTrace) -> InferenceRequest:
    """The row that goes on for one that has been answered."""
    assert trail.resume_from is not None, "who was answered has been through a stage"
    state, (place,) = trail.resume_from
    trail.resume_from = None
    return InferenceRequest(
        state,
        priority=AUDIT,
        audit=trail,
        place=place,
        shape=row.shape,
        stage=len(trail.exit_outputs),
        arrived_s=row.arrived_s,
    )


def _trail(row: InferenceRequest) -> AuditTrace:
    assert row.audit is not None, "only audited rows go beyond their exit"
    return row.audit
