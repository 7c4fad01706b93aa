"""One stage for all rows of a batch: state, exit head, scores, decision."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.backend import HeadOutput, Part, StageBackend, State, gather_arrays
from server.engine.active_policy import PolicySnapshot
from server.engine.request import ExitTrace, InferenceRequest

Array = NDArray[np.float64]


class ExitOutput(NamedTuple):
    """What an exit says of A rows, and what the policy makes of it.

    Attributes:
        said: Of A rows.
        history: The policy's, this exit included, (A, H).
        scores: (A,); None at the last exit, where nothing hangs on them.
        thresholds: That the rows met, (A,) or (1,); None likewise.
        leave: Which rows go, A of them.
    """

    said: HeadOutput
    history: Array
    scores: Array | None
    thresholds: Array | None
    leave: list[bool]

    def common_scores(self, rows: list[InferenceRequest]) -> Array | None:
        """Scores of the rows whose way hangs on the parameter in force alone; None without any."""
        if self.scores is None:
            return None
        places = [
            place
            for place, row in enumerate(rows)
            if row.parameter is None and row.deadline_s is None and not row.run_to_end
        ]
        if len(places) == len(rows):
            return self.scores
        return self.scores[places] if places else None

    def entry(self, row: InferenceRequest, place: int) -> ExitTrace:
        """What it shows of a traced row."""
        assert self.scores is not None and self.thresholds is not None, "traced rows are scored"
        threshold = self.thresholds[place if len(self.thresholds) > 1 else 0]
        numbers = (float(self.scores[place]), float(threshold), row.compute_ms)
        return ExitTrace(row.stage, self.said.log_probs[place], *numbers)


class StageResult(NamedTuple):
    """What a stage made of A rows.

    Attributes:
        state: Behind the stage.
        history: The policy's, (A, H).
        blinds: Whether the policy will miss what the exit would have said.
        parameter: In force as the policy was asked; rows with their own obey that.
        shown: None where none of them needs the stage's exit.
    """

    state: State
    history: Array
    blinds: bool
    parameter: float
    shown: ExitOutput | None


class StageExecutor:
    """Takes batches through their stage; any thread may call.

    The head of an exit that no row of the batch can take is left out. A row that misses an answer
    which the policy would read later is blind from then on: it runs to the end.

    Args:
        backend: Runs stages and heads.
    """

    def __init__(self, backend: StageBackend) -> None:
        self.backend = backend
        self._last = backend.num_exits - 1

    def __call__(self, rows: list[InferenceRequest]) -> StageResult:
        """Run the stage that the rows, all under one policy, wait for."""
        stage, parts = rows[0].stage, group_by_source_batch(rows)
        state = self.backend.run_stage(stage, self.backend.gather([part for part, _ in parts]))
        under = rows[0].policy
        assert under is not None, "rows enter under a policy"
        in_force = under.snapshot
        if not any(self._needs(row, in_force) for row in rows):
            history = in_force.policy.start(len(rows))
            return StageResult(state, history, under.has_history, in_force.parameter, None)
        (history,) = gather_arrays([Part((before,), part.rows) for part, before in parts])
        shown = self._show(rows, state, history, in_force)
        return StageResult(state, shown.history, False, in_force.parameter, shown)

    def _needs(self, row: InferenceRequest, in_force: PolicySnapshot) -> bool:
        """Whether a row needs the head of its stage."""
        if row.stage == self._last or row.traced or row.deadline_s is not None:
            return True
        if row.run_to_end:
            return False
        if row.parameter is not None:
            return in_force.policy.needs(row.stage, row.parameter)
        return in_force.needs[row.stage]

    def _show(
        self, rows: list[InferenceRequest], state: State, history: Array, in_force: PolicySnapshot
    ) -> ExitOutput:
        """What the exit says of the rows, and which of them leave."""
        exit, count = rows[0].stage, len(rows)
        said = self.backend.run_head(exit, state)
        if len(said.log_probs) > count:  # padded for the device
            said = HeadOutput(said.logits[:count], said.log_probs[:count])
        if exit == self._last and not any([row.traced for row in rows]):
            return ExitOutput(said, history, None, None, [True] * count)
        parameters = _parameters(rows, in_force.parameter)
        step = in_force.policy.step(exit, said.log_probs, history, parameters)
        leave = [True] * count if exit == self._last else step.leave.tolist()
        return ExitOutput(said, step.history, step.scores, step.thresholds, leave)


def _parameters(rows: list[InferenceRequest], parameter: float) -> Array:
    """Each row's own (A,), or (1,) where all obey the same."""
    if all([row.parameter is None for row in rows]):
        return np.array([parameter])
    return np.array([parameter if row.parameter is None else row.parameter for row in rows])


def group_by_source_batch(rows: list[InferenceRequest]) -> list[tuple[Part, Array]]:
    """The batches that rows come from, with the rows' places there, and their histories."""
    parts: list[tuple[Part, Array]] = []
    state: State | None = None
    for row in rows:
        if row.state is not state:
            state, places = row.state, list[int]()
            parts.append((Part(state, places), row.history))
        places.append(row.place)
    return parts
