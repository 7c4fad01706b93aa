import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import scheduler.policy
from scheduler.policy import ExitDecision, ExitScores, exits_taken, replay, score_all

Array = NDArray[np.float64]


class RunningTotal:
    """Scores a row by its first log-probability plus what earlier exits showed of it.

    The continuation values are the exit and the score; a row leaves where its score reaches the
    parameter.
    """

    kind = "running-total"
    num_exits = 3
    never_exit_parameter = np.inf

    def start(self, rows: int) -> Array:
        return np.zeros((rows, 1))

    def score(self, exit: int, log_probs: Array, history: Array) -> ExitScores:
        scores = log_probs[:, 0] + history[:, 0]
        return ExitScores(
            scores, scores[:, None], np.stack([np.full(len(scores), exit), scores], 1)
        )

    def decide(self, exit: int, scored: ExitScores, parameters: Array) -> ExitDecision:
        thresholds = np.broadcast_to(parameters, scored.scores.shape)
        last = exit == self.num_exits - 1
        leave = (scored.scores >= thresholds) | last
        return ExitDecision(scored.scores, scored.history, leave, thresholds)

    def thresholds(self, parameter: float) -> Array:
        return np.array([parameter, parameter, -np.inf])


def shown(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(3, rows, 2))


def test_replay_carries_each_rows_history_from_exit_to_exit() -> None:
    log_probs = shown(20)
    replayed = replay(RunningTotal(), log_probs)
    totals = np.cumsum(log_probs[:, :, 0], 0)
    for exit, scored in enumerate(replayed):
        assert scored.scores == pytest.approx(totals[exit])
        assert scored.continuation_values == pytest.approx(np.c_[np.full(20, exit), totals[exit]])


def test_replay_in_chunks_is_replay_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    log_probs = shown(23)
    whole = replay(RunningTotal(), log_probs)
    monkeypatch.setattr(scheduler.policy, "REPLAY_ROWS", 5)
    for once, parts in zip(whole, replay(RunningTotal(), log_probs), strict=True):
        assert np.array_equal(once.scores, parts.scores)
        assert np.array_equal(once.continuation_values, parts.continuation_values)


def test_score_all_has_a_row_for_each_row_and_a_column_for_each_exit() -> None:
    log_probs = shown(7)
    assert score_all(RunningTotal(), log_probs) == pytest.approx(np.cumsum(log_probs[:, :, 0], 0).T)


@given(st.integers(0, 99), st.floats(-3, 3) | st.sampled_from([-np.inf, np.inf]))
def test_a_row_takes_the_first_exit_that_lets_it_go(seed: int, parameter: float) -> None:
    log_probs = shown(30, seed)
    taken = exits_taken(RunningTotal(), replay(RunningTotal(), log_probs), parameter)
    for row in range(30):
        history, policy = np.zeros((1, 1)), RunningTotal()
        for exit in range(3):
            scored = policy.score(exit, log_probs[exit, row : row + 1], history)
            history = scored.history
            if policy.decide(exit, scored, np.array([parameter])).leave[0]:
                break
        assert taken[row] == exit
