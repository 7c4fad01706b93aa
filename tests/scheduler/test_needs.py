"""Heads that a policy says it does not need change no exit when they are left out."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.baselines import ConfidencePolicy, PatiencePolicy
from scheduler.eenet import NUM_CONFIDENCES, EENetPolicy, ExitScorer
from scheduler.fitted import Scheduler
from scheduler.fitting.fit import fit_scheduler
from scheduler.policies import POLICIES
from scheduler.policy import ExitPolicy, exits_taken, replay
from scheduler.stopping import NUM_FEATURES, StoppingPolicy
from scheduler.thresholds import ThresholdTable

Array = NDArray[np.float64]
Problem = tuple[Array, NDArray[np.int64], Array]

NEVER = np.inf
EXITS, CLASSES = 4, 3


def with_needed_heads(policy: ExitPolicy, log_probs: Array, parameter: float) -> list[int]:
    """The exit of each row where no other head is computed.

    The history goes back to its start where one is left out; if the policy has any, such rows run
    to the end.
    """
    count, remembers = log_probs.shape[1], policy.start(1).shape[1] > 0
    exits, history, hole = np.full(count, -1), policy.start(count), False
    for exit, shown in enumerate(log_probs):
        if not policy.needs(exit, parameter):
            history, hole = policy.start(count), remembers
            continue
        scored = policy.score(exit, shown, history)
        history = scored.history
        obeyed = np.array([policy.never_exit_parameter if hole else parameter])
        leave = policy.decide(exit, scored, obeyed).leave
        exits[leave & (exits < 0)] = exit
    return exits.tolist()


def with_all_heads(policy: ExitPolicy, log_probs: Array, parameter: float) -> list[int]:
    return exits_taken(policy, replay(policy, log_probs), parameter).tolist()


def random_log_probs(seed: int, pixels: bool = False, exits: int = EXITS) -> Array:
    shape = (exits, 40, 4, CLASSES) if pixels else (exits, 40, CLASSES)
    logits = 2 * np.random.default_rng(seed).normal(size=shape)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def fitted(
    quick_fits: None, make_problem: Callable[..., Problem]
) -> Callable[[str], tuple[Scheduler, Array]]:
    """Schedulers of every kind, and the predictions they were fitted to."""
    log_probs, labels, costs_ms = make_problem(rows=120, classes=CLASSES)
    schedulers = {kind: fit_scheduler(kind, log_probs, labels, costs_ms) for kind in POLICIES}
    return lambda kind: (schedulers[kind], log_probs)


@pytest.mark.parametrize("kind", POLICIES)
def test_a_fitted_policy_sends_rows_where_it_would_with_all_heads(
    kind: str, fitted: Callable[[str], tuple[Scheduler, Array]]
) -> None:
    scheduler, log_probs = fitted(kind)
    policy, at = scheduler.policy, np.sort(scheduler.frontier.parameters)
    between = [*at, *(at[1:] + at[:-1]) / 2, at[0] - 1, at[-1] + 1, policy.never_exit_parameter]
    for parameter in map(float, between):
        expected = with_all_heads(policy, log_probs, parameter)
        assert with_needed_heads(policy, log_probs, parameter) == expected


@pytest.mark.parametrize("kind", POLICIES)
def test_to_run_on_only_the_last_head_is_needed_and_to_stop_at_once_the_first_is(
    kind: str, fitted: Callable[[str], tuple[Scheduler, Array]]
) -> None:
    policy, frontier, _ = fitted(kind)[0]
    assert [policy.needs(exit, policy.never_exit_parameter) for exit in range(3)] == [
        False,
        False,
        True,
    ]
    assert policy.needs(0, float(frontier.parameters[0]))


def thresholds_with_holes() -> st.SearchStrategy[ThresholdTable]:
    early = st.lists(
        st.sampled_from([NEVER, NEVER, -NEVER, 0.4, 0.6, 0.9, 1.6, 2.5]),
        min_size=EXITS - 1,
        max_size=EXITS - 1,
    )

    def tabled(early: list[float]) -> ThresholdTable:
        closed = ThresholdTable.closed(EXITS).thresholds[0]
        return ThresholdTable(np.array([1.0, 2.0]), np.stack([[*early, -NEVER], closed]))

    return early.map(tabled)


def threshold_policy(kind: str, table: ThresholdTable) -> ExitPolicy:
    if kind == "patience":
        return PatiencePolicy(table)
    if kind == "eenet":
        rng = np.random.default_rng(1)
        widths = [CLASSES + NUM_CONFIDENCES + exit for exit in range(EXITS)]
        return EENetPolicy(table, ExitScorer(tuple(rng.normal(size=width) for width in widths)))
    return ConfidencePolicy(table, kind)


@pytest.mark.parametrize("kind", ["maxprob", "entropy", "patience", "eenet"])
@given(table=thresholds_with_holes(), seed=st.integers(0, 99), pixels=st.booleans())
def test_thresholds_may_have_holes_anywhere(
    kind: str, table: ThresholdTable, seed: int, pixels: bool
) -> None:
    policy, log_probs = threshold_policy(kind, table), random_log_probs(seed, pixels)
    for parameter in (1.0, 2.0):
        expected = with_all_heads(policy, log_probs, parameter)
        assert with_needed_heads(policy, log_probs, parameter) == expected


@given(table=thresholds_with_holes())
def test_a_policy_without_memory_needs_just_the_exits_that_fire(table: ThresholdTable) -> None:
    policy, fires = ConfidencePolicy(table, "maxprob"), table.thresholds[0] < NEVER
    assert [policy.needs(exit, 1.0) for exit in range(EXITS)] == fires.tolist()


@pytest.mark.parametrize("kind", ["patience", "eenet"])
@given(table=thresholds_with_holes())
def test_a_policy_with_memory_needs_all_up_to_the_last_that_fires_early(
    kind: str, table: ThresholdTable
) -> None:
    policy = threshold_policy(kind, table)
    fires = (table.thresholds[0, :-1] < NEVER).tolist()
    expected = [any(fires[exit:]) for exit in range(EXITS - 1)]
    assert [policy.needs(exit, 1.0) for exit in range(EXITS)] == [*expected, True]


def stopping(steps_ms: list[float], seed: int) -> StoppingPolicy:
    rng, width, exits = np.random.default_rng(seed), 3, len(steps_ms) + 1
    weights = [2 * rng.normal(size=(NUM_FEATURES, width)) for _ in range(exits)]
    offsets = [rng.normal(size=(CLASSES, width)) for _ in range(exits)]
    weights[-1], offsets[-1] = weights[-1][:, :1], offsets[-1][:, :1]
    prices = np.array([0.0, 0.5])
    return StoppingPolicy(prices, np.array(steps_ms), tuple(weights), tuple(offsets))


@given(
    steps_ms=st.lists(st.floats(0.05, 20), min_size=1, max_size=3),
    wait=st.floats(0, 2),
    seed=st.integers(0, 99),
    pixels=st.booleans(),
)
@example(steps_ms=[1.0, 10.0, 1.0], wait=0.9999, seed=0, pixels=False)
@example(steps_ms=[1.0, 10.0, 1.0], wait=1.0, seed=0, pixels=False)
@example(steps_ms=[10.0, 1.0, 10.0], wait=1.5, seed=0, pixels=False)
def test_stopping_leaves_heads_out_only_where_no_answer_is_worth_leaving_for(
    steps_ms: list[float], wait: float, seed: int, pixels: bool
) -> None:
    policy = stopping(steps_ms, seed)
    log_probs = random_log_probs(seed, pixels, exits=policy.num_exits)
    for step_ms in steps_ms:  # waiting for it is rewarded by so much
        price = -wait / step_ms
        expected = with_all_heads(policy, log_probs, price)
        assert with_needed_heads(policy, log_probs, price) == expected


def test_stopping_leaves_out_what_comes_before_steps_that_are_never_taken_back() -> None:
    policy = stopping([10.0, 1.0, 5.0], seed=0)
    assert [policy.needs(exit, -0.3) for exit in range(4)] == [True, True, False, True]
    assert [policy.needs(exit, -1.1) for exit in range(4)] == [False, False, False, True]
    assert all(policy.needs(exit, 0.0) for exit in range(4))
