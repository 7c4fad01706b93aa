"""Beyond the exit that a row was answered at: audited rows go on to the last."""

import logging
from collections.abc import Callable

import numpy as np

from models.backend import Part, StageBackend
from server.engine.request import AUDIT, Answer, Completion, Row
from server.engine.step import StageOutput, held
from server.engine.trail import Audited, LogProbs, Trail

log = logging.getLogger(__name__)


class Beyond:
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
        put: Callable[[list[Row]], None],
        tell: Callable[[Audited], None],
    ) -> None:
        self._backend = backend
        self._put = put
        self._tell = tell
        self._over = False

    def stop(self) -> None:
        """Lose rows from now on, rather than take them further."""
        self._over = True

    def begin(self, completions: list[Completion]) -> None:
        """Let the audited among rows that have been answered go on."""
        for row, outcome in completions:
            if row.trail is not None and isinstance(outcome, Answer):
                row.trail.exit = outcome.exit
                self._guarded([_further(row, row.trail)], self._begin)

    def advance(self, rows: list[Row]) -> None:
        """Take rows through the stage that they wait for, or to the exits left out on the way."""
        last = len(_trail(rows[0]).passed) == self._backend.num_exits
        self._guarded(rows, self._end if last else self._step)

    def _guarded(self, rows: list[Row], act: Callable[[list[Row]], None]) -> None:
        """Whatever happens, rows are told of, and the worker lives."""
        try:
            if not self._over:
                act(rows)
                return
        except Exception:
            log.exception("the audit of %d rows was lost at stage %d", len(rows), rows[0].stage)
        for row in rows:
            self._tell(Audited(_trail(row), None))

    def _begin(self, rows: list[Row]) -> None:
        (row,) = rows
        if row.stage < self._backend.num_exits:
            self._put(rows)
        elif any(isinstance(said, Part) for said in _trail(row).passed):
            # Apart from those that wait for this stage: only heads are left to be run.
            row.stage, row.shape = row.stage - 1, ()
            self._put(rows)
        else:
            self._end(rows)

    def _step(self, rows: list[Row]) -> None:
        stage = rows[0].stage
        state = self._backend.run_stage(
            stage, self._backend.gather([part for part, _ in held(rows)])
        )
        said = self._backend.run_head(stage, state).log_probs
        for place, row in enumerate(rows):
            row.state, row.place = state, place
            row.stage += 1
            _trail(row).passed.append(said[place])
        if stage + 1 < self._backend.num_exits:
            self._put(rows)
        else:
            self._end(rows)

    def _end(self, rows: list[Row]) -> None:
        ended = [Audited(_trail(row), self._all_said(_trail(row))) for row in rows]
        for each in ended:
            self._tell(each)

    def _all_said(self, trail: Trail) -> LogProbs:
        """What every exit says, those included that were left out on the way."""
        said = [
            self._backend.run_head(exit, self._backend.gather([at])).log_probs[0]
            if isinstance(at, Part)
            else at
            for exit, at in enumerate(trail.passed)
        ]
        return np.stack(said)


def note_passed(trail: Trail, row: Row, place: int, output: StageOutput) -> None:
    """Note what an audited row shows at a stage that it passes with a batch of users."""
    trail.stands = here = Part(output.state, [place])
    shown = output.shown
    trail.passed.append(here if shown is None else shown.said.log_probs[place])
    trail.parameter = output.parameter if row.parameter is None else row.parameter


def _further(row: Row, trail: Trail) -> Row:
    """The row that goes on for one that has been answered."""
    assert trail.stands is not None, "who was answered has been through a stage"
    state, (place,) = trail.stands
    trail.stands = None
    return Row(
        state,
        priority=AUDIT,
        trail=trail,
        place=place,
        shape=row.shape,
        stage=len(trail.passed),
        arrived_s=row.arrived_s,
    )


def _trail(row: Row) -> Trail:
    assert row.trail is not None, "only audited rows go beyond their exit"
    return row.trail
