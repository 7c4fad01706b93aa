"""Compare exit policies on recorded predictions that they were not fitted to."""

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from profiling.calibration import Predictions, Recorded
from scheduler.combiner import OWN_OUTPUTS, Combiner
from scheduler.fitted import Scheduler
from scheduler.fitting.combiner import FittedCombiner, fit_combiner
from scheduler.fitting.fit import check_costs, fit_scheduler
from scheduler.policies import POLICIES
from scheduler.policy import exits_taken, replay

Array = NDArray[np.float64]

PER_BUDGET = "eenet-per-budget"
ORACLE = "oracle"
EVALUATED = (*POLICIES, PER_BUDGET, ORACLE)
RESAMPLES = 2000
ROUNDING = 1e-9


class Evaluation(NamedTuple):
    """The realised costs and accuracies of one policy under one budget."""

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
    """The evaluation of one policy under one budget.

    Attributes:
        evaluation: Its figures.
        exits: The exit of every test sample, (M,).
        answers: The class answered for every test sample, (M,), or (M, P) for a segmentation.
    """

    evaluation: Evaluation
    exits: NDArray[np.intp]
    answers: NDArray[np.intp]


class Comparison(NamedTuple):
    """The evaluations of several policies on the same predictions.

    Attributes:
        costs_ms: Latency from the start until each exit, (K,).
        exit_accuracy: Accuracy of each exit head alone on the whole test set, (K,).
        scored: One entry for each policy and budget.
        schedulers: The fitted policies, by name.
        combiner: Of the policies that were fitted here, and of the oracle.
        auroc: Per policy and exit, how well the score ranks right predictions above wrong ones on
            the test set; None if all are right or all wrong.
    """

    costs_ms: Array
    exit_accuracy: list[float]
    scored: list[ScoredEvaluation]
    schedulers: dict[str, Scheduler]
    combiner: Combiner
    auroc: dict[str, list[float | None]]

    @property
    def budgets(self) -> list[float]:
        """Each budget once, in order."""
        return list(dict.fromkeys(each.evaluation.budget for each in self.scored))

    @property
    def by_policy(self) -> dict[str, list[Evaluation]]:
        """The evaluations of each policy, in the order of the budgets."""
        grouped: dict[str, list[Evaluation]] = {}
        for each in self.scored:
            grouped.setdefault(each.evaluation.policy, []).append(each.evaluation)
        return grouped

    def to_json(self) -> dict[str, Any]:
        """Return the document that `eenet evaluate --json` writes."""
        return {
            "costs": self.costs_ms.tolist(),
            "num_exits": len(self.costs_ms),
            "exit_accuracy": self.exit_accuracy,
            "results": [each.evaluation._asdict() for each in self.scored],
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

    Accuracies are those of combined answers, as a server gives them.

    Args:
        recorded: Calibration and test predictions.
        costs_ms: Latency from the start until each exit, rising, (K,).
        budgets: Mean-cost budgets, within the costs.
        policies: Names from `EVALUATED`.
        fitted: A scheduler to evaluate as it is, instead of a new fit of its policy.
        seed: Seed of fits and intervals.
        say: Called with one line about each policy before it is fitted.

    Raises:
        ValueError: If costs or budgets do not fit the predictions, or a policy is unknown.
    """
    check_costs(costs_ms, len(recorded.test.log_probs))
    check_budgets(budgets, costs_ms)
    unknown = [name for name in policies if name not in EVALUATED]
    if unknown:
        raise ValueError(f"policy {unknown[0]!r} is unknown; give some of {', '.join(EVALUATED)}")
    evaluator = _Evaluator(recorded, costs_ms, budgets, seed)
    schedulers: dict[str, Scheduler] = {}
    scored: list[ScoredEvaluation] = []
    for name in policies:
        say(f"fitting {name}" if name != ORACLE else "computing the oracle")
        if name == ORACLE:
            scored += evaluator.oracle()
        elif name == PER_BUDGET:
            scored += evaluator.eenet_per_budget()
        elif fitted is not None and fitted.policy.kind == name:
            schedulers[name] = fitted
            scored += evaluator.scheduler(name, fitted)
        else:
            started = time.perf_counter()
            schedulers[name] = fit_scheduler(
                name, *recorded.calibration, costs_ms, seed=seed, combined=evaluator.combined
            )
            scored += evaluator.scheduler(name, schedulers[name], time.perf_counter() - started)
    accuracy = recorded.test.correct.mean(0).tolist()
    auroc = {name: ranking_quality(each, recorded.test) for name, each in schedulers.items()}
    return Comparison(costs_ms, accuracy, scored, schedulers, evaluator.combiner, auroc)


def evaluate(
    scheduler: Scheduler, recorded: Recorded, budgets: Sequence[float], seed: int = 0
) -> list[Evaluation]:
    """Replay a fitted scheduler at fixed budgets, without a controller."""
    evaluator = _Evaluator(recorded, scheduler.frontier.costs_ms, budgets, seed)
    scored = evaluator.scheduler(scheduler.policy.kind, scheduler)
    return [each.evaluation for each in scored]


def spread_budgets(costs_ms: Array, count: int = 7) -> list[float]:
    """Return evenly spaced budgets inside the range of costs."""
    return [float(budget) for budget in np.linspace(costs_ms[0], costs_ms[-1], count + 2)[1:-1]]


def check_budgets(budgets: Sequence[float], costs_ms: Array) -> None:
    """Check that budgets lie between the first and the last exit's cost.

    Raises:
        ValueError: If a budget does not, or there are none.
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
    """Return the AUROC of (score, correct) at each exit, (K,)."""
    test = test.combined(scheduler.combiner)
    replayed = replay(scheduler.policy, test.log_probs)
    return [
        _auroc(scored.scores, right) for scored, right in zip(replayed, test.correct.T, strict=True)
    ]


class _Evaluator:
    """Replay policies on both sets at the same budgets.

    Args:
        recorded: Calibration and test predictions.
        costs_ms: (K,).
        budgets: Mean costs.
        seed: Seed of fits, and of each policy's intervals.
    """

    def __init__(
        self, recorded: Recorded, costs_ms: Array, budgets: Sequence[float], seed: int
    ) -> None:
        self._recorded = recorded
        self._costs_ms = costs_ms
        self._budgets = budgets
        self._seed = seed
        self._sides: tuple[Combiner, list[_Side]] | None = None

    @cached_property
    def combined(self) -> FittedCombiner:
        """The combiner of every policy that is fitted to these labels."""
        return fit_combiner(*self._recorded.calibration, seed=self._seed)

    @property
    def combiner(self) -> Combiner:
        """That combiner, if any policy has asked for it."""
        return self.combined.combiner if "combined" in vars(self) else OWN_OUTPUTS

    def scheduler(
        self, name: str, scheduler: Scheduler, seconds: float = 0.0
    ) -> list[ScoredEvaluation]:
        """Evaluate a fitted scheduler; `seconds` is the time that its fit took."""
        policy, frontier, combiner = scheduler
        sides = self._sides_of(combiner)
        replays = [replay(policy, side.log_probs) for side in sides]
        rng, scored = np.random.default_rng(self._seed), []
        for budget in self._budgets:
            parameter = frontier.at_cost(budget).parameter
            exits = [exits_taken(policy, replayed, parameter) for replayed in replays]
            scored.append(self._evaluation(name, budget, sides, exits, seconds, rng))
        return scored

    def eenet_per_budget(self) -> list[ScoredEvaluation]:
        """Evaluate EENet as in the paper: scores fitted anew for each budget.

        They are fitted to the calibration rows as they are answered, so that these keep the budget.
        """
        from scheduler.fitting.eenet import fit_eenet  # torch takes seconds to import

        labels = self._recorded.calibration.labels
        sides = self._sides_of(self.combined.combiner)
        log_probs = sides[0].log_probs
        first, last = self._costs_ms[[0, -1]]
        edge = 1e-3 * (last - first)
        rng, scored = np.random.default_rng(self._seed), []
        for budget in self._budgets:
            started = time.perf_counter()
            inner = np.array([np.clip(budget, first + edge, last - edge)])
            policy = fit_eenet(log_probs, labels, self._costs_ms, budgets_ms=inner, seed=self._seed)
            seconds = time.perf_counter() - started
            exits = [exits_taken(policy, replay(policy, side.log_probs), budget) for side in sides]
            scored.append(self._evaluation(PER_BUDGET, budget, sides, exits, seconds, rng))
        return scored

    def oracle(self) -> list[ScoredEvaluation]:
        """Evaluate the upper bound that knows the labels."""
        rng, scored = np.random.default_rng(self._seed), []
        sides = self._sides_of(self.combined.combiner)
        for budget in self._budgets:
            exits = [oracle_exits(side.correct, self._costs_ms, budget) for side in sides]
            scored.append(self._evaluation(ORACLE, budget, sides, exits, 0.0, rng))
        return scored

    def _sides_of(self, combiner: Combiner) -> "list[_Side]":
        """Return both sets as answered with a combiner; policies that share one come in turn."""
        if self._sides is None or self._sides[0] is not combiner:
            parts = self._recorded.calibration, self._recorded.test
            self._sides = combiner, [_Side.of(part.combined(combiner)) for part in parts]
        return self._sides[1]

    def _evaluation(
        self,
        name: str,
        budget: float,
        sides: "Sequence[_Side]",
        exits: Sequence[NDArray[np.intp]],
        seconds: float,
        rng: np.random.Generator,
    ) -> ScoredEvaluation:
        """Measure the exits (N,) and (M,) of the two sets."""
        right = [
            side.correct[np.arange(len(taken)), taken]
            for side, taken in zip(sides, exits, strict=True)
        ]
        cost, test_cost = (float(self._costs_ms[taken].mean()) for taken in exits)
        accuracy, test_accuracy = (float(each.mean()) for each in right)
        rates = np.bincount(exits[1], minlength=len(self._costs_ms)) / len(exits[1])
        return ScoredEvaluation(
            Evaluation(
                policy=name,
                budget=float(budget),
                feasible=bool(cost <= budget * (1 + ROUNDING)),
                calibration_cost=cost,
                calibration_accuracy=accuracy,
                test_cost=test_cost,
                test_accuracy=test_accuracy,
                test_accuracy_ci95=self._interval(right[1], rng),
                exit_rates=rates.tolist(),
                fit_seconds=seconds,
            ),
            exits[1],
            sides[1].answers[exits[1], np.arange(len(exits[1]))],
        )

    def _interval(self, correct: Array, rng: np.random.Generator) -> tuple[float, float]:
        """Bootstrap the 95 % interval of the mean of what each test row has right, (M,)."""
        rows, pixels = len(correct), self._recorded.test.labels[0].size
        # A resample of M rows holds a multinomial number of those with each share of right pixels.
        wrong = np.rint(pixels * (1 - correct)).astype(np.intp)
        counts = rng.multinomial(rows, np.bincount(wrong, minlength=pixels + 1) / rows, RESAMPLES)
        resampled = counts @ np.linspace(1, 0, pixels + 1) / rows
        low, high = np.percentile(resampled, [2.5, 97.5]).tolist()
        return low, high


class _Side(NamedTuple):
    """One set as answered: log-probabilities (K, N, C), answers (K, N), right answers (N, K)."""

    log_probs: NDArray[np.floating]
    answers: NDArray[np.intp]
    correct: Array

    @classmethod
    def of(cls, combined: Predictions) -> "_Side":
        return cls(combined.log_probs, combined.log_probs.argmax(-1), combined.correct)


def oracle_exits(correct: Array, costs_ms: Array, budget: float) -> NDArray[np.intp]:
    """Return the exits (N,) with the most right predictions for a budget: an upper bound.

    From the first exit on, every row moves to the exit where a right prediction is cheapest. The
    cheapest moves of all rows come first, as long as the budget pays for them. Rows that gain
    nothing leave at the first exit. If exits are right in part (masks), another choice of exits
    could gain at most one row more.

    Args:
        correct: The share of each row that each exit has right, in [0, 1], (N, K).
        costs_ms: Rising costs (K,).
        budget: At least the first cost.
    """
    right, rows = correct.astype(np.float64), np.arange(len(correct))
    # After each move, (N,) each: the exit, and the highest price paid so far.
    ends, prices = [np.zeros(len(rows), np.intp)], [np.zeros(len(rows))]
    for _ in costs_ms[1:]:
        gains, extra = right - right[rows, ends[-1], None], costs_ms - costs_ms[ends[-1], None]
        price = np.full(right.shape, np.inf)  # ms per right prediction gained, (N, K)
        np.divide(extra, gains, out=price, where=(gains > 0) & (extra > 0))
        best = price.argmin(1)
        prices.append(np.maximum(prices[-1], price[rows, best]))
        ends.append(np.where(np.isfinite(prices[-1]), best, ends[-1]))
    order = np.argsort(np.ravel(prices), kind="stable")
    spent = np.diff(costs_ms[np.stack(ends)], axis=0, prepend=costs_ms[0]).ravel()
    paid = order[np.cumsum(spent[order]) <= (budget - costs_ms[0]) * len(rows) * (1 + ROUNDING)]
    exits = np.zeros(len(rows), np.intp)
    np.maximum.at(exits, paid % len(rows), np.ravel(ends)[paid])
    return exits


def _auroc(scores: Array, right: Array) -> float | None:
    """Return the probability that a right row or pixel scores above a wrong one."""
    # Ties count half.
    _, ranks = np.unique(scores, return_inverse=True)
    num_right, num_wrong = np.bincount(ranks, right), np.bincount(ranks, 1 - right)  # by score
    pairs = num_right.sum() * num_wrong.sum()
    if pairs == 0:
        return None
    beaten = np.cumsum(num_wrong) - num_wrong / 2
    return float(num_right @ beaten / pairs)
