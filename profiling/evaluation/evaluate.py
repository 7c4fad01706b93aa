"""What policies make of predictions they have not seen."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from profiling.calibration import Predictions, Recorded
from profiling.evaluation.oracle import oracle_exits
from scheduler.fitted import POLICIES, Scheduler
from scheduler.fitting.eenet import fit_eenet
from scheduler.fitting.fit import check_costs, fit_scheduler
from scheduler.policy import exits_taken, replay

Array = NDArray[np.float64]

PER_BUDGET = "eenet-per-budget"
ORACLE = "oracle"
EVALUATED = (*POLICIES, PER_BUDGET, ORACLE)
RESAMPLES = 2000
ROUNDING = 1e-9


class Evaluation(NamedTuple):
    """Realised figures of one policy under one budget."""

    policy: str
    budget: float
    feasible: bool
    calibration_cost: float
    calibration_accuracy: float
    test_cost: float
    test_accuracy: float
    test_accuracy_ci95: tuple[float, float]
    exit_rates: list[float]
    fit_seconds: float


class ScoredEvaluation(NamedTuple):
    """One policy under one budget: figures, and the exit of every test sample (M,)."""

    evaluation: Evaluation
    exits: NDArray[np.intp]


class Comparison(NamedTuple):
    """Policies side by side on the same predictions.

    Attributes:
        costs_ms: (K,).
        exit_accuracy: Of the test set at each exit, (K,).
        judged: One for each policy and budget.
        schedulers: The fitted policies, by name.
        auroc: Per policy and exit, how well the score ranks right answers before wrong ones on
            the test set; None where all are right or all wrong.
    """

    costs_ms: Array
    exit_accuracy: list[float]
    judged: list[ScoredEvaluation]
    schedulers: dict[str, Scheduler]
    auroc: dict[str, list[float | None]]

    @property
    def budgets(self) -> list[float]:
        """Each budget once, in order."""
        return list(dict.fromkeys(judged.evaluation.budget for judged in self.judged))

    @property
    def by_policy(self) -> dict[str, list[Evaluation]]:
        """The evaluations of each policy, in the order of the budgets."""
        grouped: dict[str, list[Evaluation]] = {}
        for judged in self.judged:
            grouped.setdefault(judged.evaluation.policy, []).append(judged.evaluation)
        return grouped

    def to_json(self) -> dict[str, Any]:
        """What `eenet evaluate --json` writes."""
        return {
            "costs": self.costs_ms.tolist(),
            "num_exits": len(self.costs_ms),
            "exit_accuracy": self.exit_accuracy,
            "results": [judged.evaluation._asdict() for judged in self.judged],
            "auroc": self.auroc,
        }


def compare(
    recorded: Recorded,
    costs_ms: Array,
    *,
    budgets: Sequence[float],
    policies: Sequence[str] = EVALUATED,
    fitted: Scheduler | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda step: None,
) -> Comparison:
    """Fit policies to the calibration set and replay them on both sets.

    Args:
        recorded: Calibration and test predictions.
        costs_ms: Latency from the start until each exit, rising, (K,).
        budgets: Mean-cost budgets, within the costs.
        policies: Of `EVALUATED`.
        fitted: A scheduler to judge as it is in place of a new fit of its policy.
        seed: Of fits and intervals.
        say: Told what is being fitted.

    Raises:
        ValueError: If costs, budgets or policies make no sense.
    """
    check_costs(costs_ms, len(recorded.test.log_probs))
    check_budgets(budgets, costs_ms)
    unknown = [name for name in policies if name not in EVALUATED]
    if unknown:
        raise ValueError(f"policy {unknown[0]!r} is unknown; give some of {', '.join(EVALUATED)}")
    calibration = recorded.calibration
    schedulers: dict[str, Scheduler] = {}
    judged, auroc = [], {}
    correct = (calibration.correct, recorded.test.correct)
    for name in policies:
        say(f"fitting {name}" if name != ORACLE else "asking the oracle")
        judge = _Judge(recorded, correct, costs_ms, name, np.random.default_rng(seed))
        started = time.perf_counter()
        if name == ORACLE:
            judged += [judge.oracle(budget) for budget in budgets]
        elif name == PER_BUDGET:
            judged += [judge.eenet_for(budget, seed) for budget in budgets]
        elif fitted is not None and fitted.policy.kind == name:
            schedulers[name] = fitted
            judged += judge.scheduler(fitted, budgets, 0.0)
        else:
            schedulers[name] = fit_scheduler(
                name, calibration.log_probs, calibration.labels, costs_ms, seed=seed
            )
            seconds = time.perf_counter() - started
            judged += judge.scheduler(schedulers[name], budgets, seconds)
        if name in schedulers:
            auroc[name] = ranking_quality(schedulers[name], recorded.test)
    accuracy = correct[1].mean(0).tolist()
    return Comparison(costs_ms, accuracy, judged, schedulers, auroc)


def evaluate(
    scheduler: Scheduler, recorded: Recorded, budgets: Sequence[float], seed: int = 0
) -> list[Evaluation]:
    """Replay a fitted scheduler at fixed budgets, no control on top."""
    correct, rng = (
        (recorded.calibration.correct, recorded.test.correct),
        np.random.default_rng(seed),
    )
    costs_ms, kind = scheduler.frontier.costs_ms, scheduler.policy.kind
    judge = _Judge(recorded, correct, costs_ms, kind, rng)
    return [judged.evaluation for judged in judge.scheduler(scheduler, budgets, 0.0)]


def spread_budgets(costs_ms: Array, count: int = 7) -> list[float]:
    """Budgets at even distances inside the range of costs."""
    return [float(budget) for budget in np.linspace(costs_ms[0], costs_ms[-1], count + 2)[1:-1]]


def check_budgets(budgets: Sequence[float], costs_ms: Array) -> None:
    """Check that budgets lie between the first and the last exit's cost.

    Raises:
        ValueError: If one does not.
    """
    if not budgets:
        raise ValueError("there are no budgets; give at least one")
    for index, budget in enumerate(budgets):
        if not costs_ms[0] <= budget <= costs_ms[-1]:  # NaN fails too
            raise ValueError(
                f"budget {index} is {budget:g}, outside {costs_ms[0]:g} to {costs_ms[-1]:g}, the "
                f"costs of the first and the last exit; give one between them"
            )


def ranking_quality(scheduler: Scheduler, test: Predictions) -> list[float | None]:
    """AUROC of (score, right) at each exit, (K,)."""
    replayed = replay(scheduler.policy, test.log_probs)
    return [
        _auroc(scored.scores, right) for scored, right in zip(replayed, test.correct.T, strict=True)
    ]


class _Judge(NamedTuple):
    """Replays one policy on both sets."""

    recorded: Recorded
    correct: tuple[Array, Array]  # of both sets, (N, K) and (M, K)
    costs_ms: Array
    policy: str
    rng: np.random.Generator

    def scheduler(
        self, scheduler: Scheduler, budgets: Sequence[float], seconds: float
    ) -> list[ScoredEvaluation]:
        policy, frontier = scheduler
        replays = [replay(policy, part.log_probs) for part in self.recorded]
        judged = []
        for budget in budgets:
            parameter = frontier.at_cost(budget).parameter
            calibration_exits, test_exits = (
                exits_taken(policy, replayed, parameter) for replayed in replays
            )
            judged.append(self._figures(budget, calibration_exits, test_exits, seconds))
        return judged

    def eenet_for(self, budget: float, seed: int) -> ScoredEvaluation:
        """EENet as in the paper: scores fitted for this budget alone."""
        started = time.perf_counter()
        log_probs, labels = self.recorded.calibration
        span = self.costs_ms[-1] - self.costs_ms[0]
        inner = np.clip(budget, self.costs_ms[0] + 1e-3 * span, self.costs_ms[-1] - 1e-3 * span)
        policy = fit_eenet(
            log_probs, labels, self.costs_ms, budgets_ms=np.array([inner]), seed=seed
        )
        seconds = time.perf_counter() - started
        calibration_exits, test_exits = (
            exits_taken(policy, replay(policy, part.log_probs), budget) for part in self.recorded
        )
        return self._figures(budget, calibration_exits, test_exits, seconds)

    def oracle(self, budget: float) -> ScoredEvaluation:
        calibration_exits, test_exits = (
            oracle_exits(part, self.costs_ms, budget) for part in self.correct
        )
        return self._figures(budget, calibration_exits, test_exits, 0.0)

    def _figures(
        self,
        budget: float,
        calibration_exits: NDArray[np.intp],
        test_exits: NDArray[np.intp],
        seconds: float,
    ) -> ScoredEvaluation:
        (cost, accuracy), (test_cost, test_accuracy) = (
            (float(self.costs_ms[exits].mean()), float(part[np.arange(len(exits)), exits].mean()))
            for part, exits in zip(self.correct, (calibration_exits, test_exits), strict=True)
        )
        rows, pixels = len(test_exits), self.recorded.test.labels[0].size
        # A resample of N rows holds a multinomial number of those with each share of right pixels.
        wrong = np.rint(pixels * (1 - self.correct[1][np.arange(rows), test_exits])).astype(np.intp)
        counts = self.rng.multinomial(
            rows, np.bincount(wrong, minlength=pixels + 1) / rows, RESAMPLES
        )
        resampled = counts @ np.linspace(1, 0, pixels + 1) / rows
        low, high = np.percentile(resampled, [2.5, 97.5]).tolist()
        rates = (np.bincount(test_exits, minlength=len(self.costs_ms)) / rows).tolist()
        return ScoredEvaluation(
            Evaluation(
                self.policy,
                float(budget),
                bool(cost <= budget * (1 + ROUNDING)),
                cost,
                accuracy,
                test_cost,
                test_accuracy,
                (low, high),
                rates,
                seconds,
            ),
            test_exits,
        )


def _auroc(scores: Array, right: Array) -> float | None:
    """Chance that a right answer (or pixel) scores above a wrong one, ties counting half."""
    _, ranks = np.unique(scores, return_inverse=True)
    num_right, num_wrong = np.bincount(ranks, right), np.bincount(ranks, 1 - right)  # by score
    pairs = num_right.sum() * num_wrong.sum()
    if pairs == 0:
        return None
    beaten = np.cumsum(num_wrong) - num_wrong / 2
    return float(num_right @ beaten / pairs)
