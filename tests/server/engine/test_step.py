import math
import time
from typing import Any

import numpy as np
import pytest

from models.backend import HeadOutput, State
from scheduler.baselines import ConfidencePolicy, PatiencePolicy
from scheduler.policy import ExitPolicy, ExitScores
from server.engine.request import InferenceRequest, Prediction
from tests.fakes import FakeBackend
from tests.server.engine.harness import (
    NEVER,
    engine_of,
    exits_of,
    opened_late,
    policy,
    remembering,
    serve,
    sure,
    table,
)


def test_heads_at_which_no_row_can_leave_are_left_out() -> None:
    backend = FakeBackend()
    done = serve(
        [InferenceRequest(sure(0.95, 0.95, 0.95)) for _ in range(5)], backend, parameter=2.0
    )
    assert exits_of(done) == [2] * 5
    assert set(backend.heads) == {2}


@pytest.mark.parametrize(
    ("wish", "exit"),
    [({"traced": True}, 2), ({"deadline_s": 1e12}, 2), ({"parameter": 1.0}, 1)],
    ids=["traced", "with a deadline", "with a parameter of its own"],
)
@pytest.mark.parametrize("by", [policy(), remembering()], ids=["forgetful", "remembering"])
def test_heads_that_one_row_needs_are_computed_for_its_batch(
    by: ExitPolicy, wish: dict[str, Any], exit: int
) -> None:
    backend = FakeBackend()
    rows = [InferenceRequest(sure(0.6, 0.85, 0.95)) for _ in range(3)]
    rows[1] = InferenceRequest(sure(0.6, 0.85, 0.95), **wish)
    done = serve(rows, backend, by=by, parameter=2.0, max_batch=3)
    assert exits_of(done) == [2, exit, 2]
    assert backend.heads == [0, 1, 2]


def test_rows_that_all_want_to_run_on_need_no_head_though_others_would() -> None:
    backend = FakeBackend()
    serve([InferenceRequest(sure(0.95, 0.95, 0.95), parameter=2.0)], backend, parameter=1.0)
    assert backend.heads == [2]


@pytest.mark.parametrize(
    ("by", "heads"),
    [
        (ConfidencePolicy(table(NEVER, 0.8), "maxprob"), [1, 1]),
        (PatiencePolicy(table(NEVER, 2.8)), [0, 0, 1, 1]),
    ],
    ids=["forgetful", "remembering"],
)
def test_an_exit_that_never_fires_is_computed_only_for_what_later_ones_remember(
    by: ExitPolicy, heads: list[int]
) -> None:
    backend = FakeBackend()
    done = serve([InferenceRequest(sure(0.95, 0.95, 0.95)) for _ in range(2)], backend, by=by)
    assert exits_of(done) == [1, 1]
    assert sorted(backend.heads) == heads


class PixelBackend(FakeBackend):
    """The same of four pixels a row."""

    def run_head(self, exit: int, state: State) -> HeadOutput:
        said = super().run_head(exit, state).log_probs
        pixels = said[:, None].repeat(4, 1)  # (A, 4, C)
        return HeadOutput(pixels, pixels)


@pytest.mark.parametrize("kind", [FakeBackend, PixelBackend], ids=["row", "pixels"])
def test_a_row_with_a_hole_in_its_history_runs_to_the_end_beside_others_without(
    kind: type[FakeBackend],
) -> None:
    backend = kind()
    assert opened_late(backend, remembering(), 2.0, 1.0) == [1, 2, 2]
    assert sorted(backend.heads) == [0, 1, 2], "rows that run on need no head before the last"


def test_a_policy_without_memory_may_let_a_row_go_after_a_hole() -> None:
    assert opened_late(FakeBackend(), policy(), 2.0, 1.0) == [1, 1, 1]


@pytest.mark.parametrize("by", [policy(), remembering()], ids=["forgetful", "remembering"])
@pytest.mark.parametrize("traced", [False, True])
def test_rows_that_a_device_adds_to_a_batch_change_no_answer(by: ExitPolicy, traced: bool) -> None:
    confidences = [(0.6, 0.6, 0.95), (0.95, 0.6, 0.6), (0.6, 0.85, 0.6), (0.6, 0.6, 0.6)] * 3
    backend = FakeBackend(multiple=4)
    rows = [InferenceRequest(sure(*each), traced=traced) for each in confidences[:11]]
    done = serve(rows, backend, by=by, max_batch=5)
    assert exits_of(done) == ([2, 0, 1, 2] * 3)[:11]
    for index, answer in enumerate(completion.result for completion in map(done.get, range(11))):
        assert isinstance(answer, Prediction)
        assert np.exp(answer.output.log_probs[0]) == pytest.approx(confidences[index][answer.exit])
        assert answer.output.log_probs.shape == answer.output.logits.shape == (2,)
    assert [len(shown) for stage, shown in backend.batches if stage == 0] == [8, 8, 4]
    assert all(len(shown) % 4 == 0 for _, shown in backend.batches)


def test_rows_go_straight_on_behind_an_exit_that_none_of_them_needs() -> None:
    backend = FakeBackend()
    serve(
        [InferenceRequest(sure(0.95, 0.95, 0.95)) for _ in range(4)],
        backend,
        parameter=2.0,
        max_batch=2,
    )
    assert [stage for stage, _ in backend.batches] == [0, 1, 2, 0, 1, 2]
    assert backend.heads == [2, 2]


class Fragile(ConfidencePolicy):
    """Cannot score a confidence of 0.66."""

    def score(self, exit: int, log_probs: Any, history: Any) -> ExitScores:
        if np.isclose(np.exp(log_probs[:, 0]), 0.66).any():
            raise FloatingPointError("no score")
        return super().score(exit, log_probs, history)


def test_a_row_that_cannot_be_scored_fails_alone_and_the_workers_live_on() -> None:
    done: list[InferenceRequest] = []
    engine = engine_of(FakeBackend(), done.extend, by=Fragile(table(0.9, 0.8), "x"), max_batch=4)
    engine.start()
    rows = [InferenceRequest(sure(shown, 0.95, 0.95)) for shown in (0.95, 0.66, 0.6, 0.6)]
    engine.submit(rows)
    while len(done) < 4:
        time.sleep(0.001)
    assert engine.alive
    engine.stop()
    by_row = {rows.index(completion): completion.result for completion in done}
    assert [getattr(by_row[place], "exit", None) for place in range(4)] == [0, None, 1, 1]


@pytest.mark.parametrize("wish", [{}, {"traced": True}, {"traced": True, "deadline_s": 1e12}])
def test_every_row_leaves_at_the_last_exit_even_if_the_network_says_nan(
    wish: dict[str, Any],
) -> None:
    engine = engine_of(FakeBackend(), (done := list[InferenceRequest]()).extend)
    engine.submit([InferenceRequest(sure(math.nan, math.nan, math.nan), **wish)])
    engine.start()
    engine.submit([InferenceRequest(sure(0.95, 0.95, 0.95))])
    engine.stop()
    assert sorted(completion.result.exit for completion in done) == [0, 2]  # type: ignore[union-attr]
