"""Every policy on every kind of problem."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from scheduler.combiner import OWN_OUTPUTS
from scheduler.confidence import finite_log_probs
from scheduler.fitted import Scheduler
from scheduler.fitting.combiner import FittedCombiner
from scheduler.fitting.fit import fit_scheduler
from scheduler.policies import POLICIES
from scheduler.policy import CalibrationSet, ExitPolicy, exits_taken, replay

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


def ordinary(exits: int = 3, classes: int = 4, rows: int = 120, seed: int = 0) -> CalibrationSet:
    """Later exits are surer and more often right, easy rows right from the first on."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    easiness = rng.uniform(0, 1, (rows, 1))
    logits = rng.normal(size=(exits, rows, classes))
    for k, strength in enumerate(np.linspace(3, 8, exits)):
        logits[k] += strength * easiness * np.eye(classes)[labels]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return CalibrationSet(log_probs, labels, np.linspace(1.0, 1.6, exits))


def identical_exits() -> CalibrationSet:
    problem = ordinary()
    return problem._replace(log_probs=np.stack([problem.log_probs[1]] * 3))


def useless_exit() -> CalibrationSet:
    """The second exit says anything, and is sure of it."""
    problem = ordinary()
    noise = 4 * np.random.default_rng(9).normal(size=problem.log_probs[1].shape)
    log_probs = problem.log_probs.copy()
    log_probs[1] = noise - np.log(np.exp(noise).sum(-1, keepdims=True))
    return problem._replace(log_probs=log_probs)


def always(right: bool) -> CalibrationSet:
    """All exits give the same answers, of different confidence, all right or all wrong."""
    problem = ordinary()
    answers = problem.log_probs[0].argmax(-1)
    boost = 3 * np.eye(4)[answers] * np.array([1, 2, 3])[:, None, None]
    logits = problem.log_probs[0] + boost
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return problem._replace(log_probs=log_probs, labels=(answers + (not right)) % 4)


def one_class_only() -> CalibrationSet:
    problem = ordinary()
    return problem._replace(labels=np.zeros_like(problem.labels))


def certain() -> CalibrationSet:
    """Half of the rows have probabilities of exactly 0 and 1, right or wrong."""
    problem = ordinary()
    probs = np.exp(problem.log_probs)
    probs[:, ::2] = np.eye(4)[probs[:, ::2].argmax(-1)]
    return problem._replace(log_probs=finite_log_probs(probs))


def duplicated() -> CalibrationSet:
    """Twelve rows, ten times each: scores tie."""
    problem = ordinary()
    return problem.rows(np.arange(120) < 12)._replace(
        log_probs=np.tile(problem.log_probs[:, :12], (1, 10, 1)),
        labels=np.tile(problem.labels[:12], 10),
    )


def half_precision() -> CalibrationSet:
    problem = ordinary()
    return problem._replace(log_probs=problem.log_probs.astype(np.float16))


def smallest() -> CalibrationSet:
    return ordinary().rows(np.arange(120) < 10)


def of_pixels(rows: int = 60, pixels: int = 9, classes: int = 4, seed: int = 0) -> CalibrationSet:
    """Rows of several pixels that are as easy as one another."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (rows, pixels))
    easiness = rng.uniform(0, 1, (rows, 1, 1)) * rng.uniform(0.5, 1.5, (rows, pixels, 1))
    logits = rng.normal(size=(3, rows, pixels, classes))
    for k, strength in enumerate((3, 5, 8)):
        logits[k] += strength * easiness * np.eye(classes)[labels]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return CalibrationSet(log_probs, labels, np.array([1.0, 1.2, 1.6]))


def half_precision_pixels() -> CalibrationSet:
    problem = of_pixels()
    return problem._replace(log_probs=problem.log_probs.astype(np.float16))


def wide_costs() -> CalibrationSet:
    return ordinary()._replace(costs_ms=np.array([0.01, 1.0, 100.0]))


PROBLEMS: dict[str, Callable[[], CalibrationSet]] = {
    "ordinary, 200 rows": lambda: ordinary(rows=200),
    "2 exits": lambda: ordinary(exits=2),
    "12 exits": lambda: ordinary(exits=12),
    "2 classes": lambda: ordinary(classes=2),
    "200 classes": lambda: ordinary(classes=200),
    "exits identical": identical_exits,
    "a useless exit": useless_exit,
    "all right": lambda: always(True),
    "all wrong": lambda: always(False),
    "one class only": one_class_only,
    "probabilities 0 and 1": certain,
    "duplicated rows": duplicated,
    "half precision": half_precision,
    "10 rows": smallest,
    "costs far apart": wide_costs,
    "pixels": of_pixels,
    "pixels in half precision": half_precision_pixels,
    "pixels of 2 classes": lambda: of_pixels(classes=2),
    "10 rows of 64 pixels": lambda: of_pixels(rows=10, pixels=64),
    "one pixel a row": lambda: of_pixels(rows=120, pixels=1),
}
LARGE = {
    "1000 classes": lambda: ordinary(classes=1000, rows=300),
    "pixels of 150 classes": lambda: of_pixels(classes=150),
}
CASES = [(kind, name) for name in PROBLEMS for kind in POLICIES] + [
    (kind, name) for name in LARGE for kind in ("stopping", "maxprob")
]


@lru_cache
def fitted(kind: str, name: str) -> tuple[Scheduler, CalibrationSet]:
    """A policy fitted to a problem, coarsely enough to be done in a moment."""
    problem = (PROBLEMS | LARGE)[name]()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("scheduler.frontier.GRID_STEP", 0.4)
        patched.setattr("scheduler.fitting.stopping.GRID_STEP", 0.02)
        patched.setattr("scheduler.thresholds.REPAIR_STEPS", 12)
        patched.setattr("scheduler.fitting.eenet.SCORE_STEPS", 3)
        patched.setattr("scheduler.fitting.eenet.ASSIGNMENT_STEPS", 3)
        patched.setattr("scheduler.fitting.eenet.NUM_BUDGETS", 3)
        patched.setattr("scheduler.fitting.fit.FOLDS", 2)
        # Of the policies alone; tests/scheduler/fitting/test_fit.py has them combined.
        own = FittedCombiner(OWN_OUTPUTS, problem.log_probs)
        return fit_scheduler(kind, *problem, combined=own), problem


# The others meet every policy in the slow tests.
QUICK = ("ordinary, 200 rows", "12 exits", "probabilities 0 and 1", "10 rows", "pixels")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            (kind, name),
            id=f"{name}-{kind}",
            marks=() if name in QUICK else pytest.mark.slow,
        )
        for kind, name in CASES
    ],
)
def case(request: pytest.FixtureRequest) -> tuple[Scheduler, CalibrationSet]:
    return fitted(*request.param)


@pytest.fixture(scope="module", autouse=True)
def forget() -> Iterator[None]:
    yield
    fitted.cache_clear()


def budgets(problem: CalibrationSet) -> Array:
    """Five from the first cost to the last."""
    return np.linspace(problem.costs_ms[0], problem.costs_ms[-1], 5)


def parameters(scheduler: Scheduler, problem: CalibrationSet) -> list[float]:
    """Those that keep five budgets, and the one at which all run on."""
    kept = [scheduler.frontier.at_cost(budget).parameter for budget in budgets(problem)]
    return [*kept, scheduler.policy.never_exit_parameter]


def arrays_of(scheduler: Scheduler) -> Iterator[Array]:
    """All numbers of a scheduler."""
    pending = [*vars(scheduler.policy).values(), *vars(scheduler.frontier).values()]
    while pending:
        part = pending.pop()
        if isinstance(part, np.ndarray):
            yield part
        elif isinstance(part, (tuple, list)):
            pending += part
        elif hasattr(part, "__dict__"):
            pending += vars(part).values()


def serve(policy: ExitPolicy, log_probs: NDArray[np.floating], own: Array) -> Ints:
    """The exit (A,) each row takes by its own parameter; rows that left are shown no more."""
    exits, staying = np.full(len(own), -1), np.arange(len(own))
    history = policy.start(len(own))
    for exit, rows in enumerate(log_probs):
        scored = policy.score(exit, rows[staying], history)
        leave = policy.decide(exit, scored, own[staying]).leave
        exits[staying[leave]] = exit
        staying, history = staying[~leave], scored.history[~leave]
    assert not len(staying)
    return exits


def test_no_number_of_it_is_nan(case: tuple[Scheduler, CalibrationSet]) -> None:
    scheduler, problem = case
    arrays = list(arrays_of(scheduler))
    assert len(arrays) >= 6
    assert not any(np.isnan(array).any() for array in arrays)
    assert np.isfinite(scheduler.frontier.expected_accuracy).all()
    assert np.isfinite(scheduler.frontier.exit_rates).all()
    for scored in replay(scheduler.policy, problem.log_probs):
        assert np.isfinite(scored.scores).all()
        assert np.isfinite(scored.continuation_values).all()


def test_its_frontier_rises_from_all_at_the_first_exit_to_all_at_the_last(
    case: tuple[Scheduler, CalibrationSet],
) -> None:
    frontier, problem = case[0].frontier, case[1]
    assert (np.diff(frontier.expected_costs_ms) > 0).all()
    ends, right = np.eye(len(problem.costs_ms)), problem.log_probs.argmax(-1) == problem.labels
    for end in (0, -1):
        assert frontier.exit_rates[end].tolist() == ends[end].tolist()
        assert frontier.expected_accuracy[end] == pytest.approx(right[end].mean())
    assert frontier.exit_rates.sum(1) == pytest.approx(np.ones(len(frontier)))
    assert frontier.expected_accuracy.min() >= 0
    assert frontier.expected_accuracy.max() <= 1


def test_its_budgets_are_kept_on_the_calibration_rows(
    case: tuple[Scheduler, CalibrationSet],
) -> None:
    scheduler, problem = case
    replayed = replay(scheduler.policy, problem.log_probs)
    for budget in budgets(problem):
        at = scheduler.frontier.at_cost(budget).parameter
        exits = exits_taken(scheduler.policy, replayed, at)
        assert problem.costs_ms[exits].mean() <= budget * (1 + 1e-8)


def test_it_sends_all_to_the_end_if_told_to_run_on(case: tuple[Scheduler, CalibrationSet]) -> None:
    scheduler, problem = case
    replayed = replay(scheduler.policy, problem.log_probs)
    exits = exits_taken(scheduler.policy, replayed, scheduler.policy.never_exit_parameter)
    assert set(exits) == {len(problem.costs_ms) - 1}


def test_rows_decide_alone_as_in_a_batch(
    case: tuple[Scheduler, CalibrationSet], request: pytest.FixtureRequest
) -> None:
    scheduler, problem = case
    policy, rows = scheduler.policy, problem.log_probs[:, :20]
    replayed = replay(policy, rows)
    for at in parameters(scheduler, problem):
        together = exits_taken(policy, replayed, at)
        alone = [serve(policy, rows[:, n : n + 1], np.array([at]))[0] for n in range(rows.shape[1])]
        assert together.tolist() == alone


def test_rows_with_parameters_of_their_own_decide_as_alone(
    case: tuple[Scheduler, CalibrationSet],
) -> None:
    scheduler, problem = case
    policy, rows = scheduler.policy, problem.log_probs
    at = np.array(parameters(scheduler, problem))
    own = np.random.default_rng(0).integers(0, len(at), rows.shape[1])
    replayed = replay(policy, rows)
    by_parameter = np.stack([exits_taken(policy, replayed, value) for value in at.tolist()])
    expected = by_parameter[own, np.arange(rows.shape[1])]
    assert np.array_equal(serve(policy, rows, at[own]), expected)
