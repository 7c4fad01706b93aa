"""Fit EENet: exit scores and exit distributions in turn, for all budgets at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scheduler.eenet import NUM_CONFIDENCES, EENetPolicy, ExitScorer
from scheduler.frontier import budget_grid
from scheduler.pixels import correct_share
from scheduler.policy import CalibrationSet, score_all
from scheduler.thresholds import ThresholdTable, repaired_thresholds, route, tabulate, tilt

Array = NDArray[np.float64]

COST_WEIGHT = 1e-2  # alpha_cost, as published
KL_WEIGHT = 1e-3  # weight of KL(p* || r), as published
SCORE_STEPS, ASSIGNMENT_STEPS = 60, 60
SCORE_LR, ASSIGNMENT_LR = 3e-3, 2e-2
EPSILON = 1e-4  # keeps the logarithms of the clamped scores finite
MAX_WIDTH = 64
ASSIGNMENT_VALUES = 20_000_000  # probabilities that h is fitted to; more rows improve it no more
NUM_BUDGETS = 24


def fit(calibration: CalibrationSet, seed: int) -> EENetPolicy:
    """Fit the policy for the table of policies."""
    return fit_eenet(*calibration, seed=seed)


def fit_eenet(
    log_probs: NDArray[np.floating],
    labels: NDArray[np.int64],
    costs_ms: Array,
    row_weights: Array | None = None,
    *,
    budgets_ms: Array | None = None,
    seed: int = 0,
    rounds: int = 4,
    restarts: int = 1,
    use_vote: bool = True,
) -> EENetPolicy:
    """Fit exit scores g and, per budget, the exit assignment h (Ilhan et al. 2024, section 3).

    g and h take turns. h learns to spend each budget at the exits with the highest scores. g learns
    P(correct) on the rows that h sends to each exit, averaged over the budgets, so that one g
    serves them all. The g with the best mean calibration accuracy is kept, every budget repaired to
    feasibility; the start (score = max probability) is one of the candidates.

    Args:
        log_probs: Calibration log-probabilities, (K, N, C) or (K, N, P, C).
        labels: (N,) or (N, P).
        costs_ms: Latency from the start until each exit, rising, (K,).
        row_weights: As in `CalibrationSet`, (N,).
        budgets_ms: Rising budgets that h is fitted for, strictly inside the range of costs, (B,);
            between them the exit distribution is interpolated. A single one fits g for it alone,
            as in the paper. None: 24 over the range.
        seed: Seed of the assignment networks.
        rounds: Alternations per restart.
        restarts: Independent starts.
        use_vote: Let the scores see the vote (the paper does, the published code does not).

    Returns:
        The policy with thresholds for every budget between the first and the last cost.
    """
    if budgets_ms is None:
        budgets_ms = np.linspace(costs_ms[0], costs_ms[-1], NUM_BUDGETS + 2)[1:-1]
    correct = correct_share(log_probs, labels)
    problem = _Problem(log_probs, correct, costs_ms, budgets_ms, use_vote, row_weights)
    with _one_thread():
        candidates = [
            candidate
            for restart in range(restarts)
            for candidate in _alternate(problem, rounds, seed + restart)
        ]
    best = max(candidates, key=lambda candidate: candidate.accuracy)
    return problem.finish(best)


def fit_published(
    policy: EENetPolicy,
    log_probs: NDArray[np.floating],
    costs_ms: Array,
    row_weights: Array | None = None,
) -> EENetPolicy:
    """Fit thresholds for every budget on published scores, from the published assignment.

    The mean of the published assignment is the exit distribution of the one budget it was fitted
    for. For other budgets it is tilted, p_k exp(-theta c_k), until it costs the budget.

    Args:
        policy: From `load_published_scheduler`.
        log_probs: Calibration log-probabilities, (K, N, C) or (K, N, P, C).
        costs_ms: Latency from the start until each exit, rising, (K,).
        row_weights: As in `CalibrationSet`, (N,).

    Raises:
        ValueError: If the numbers of exits or classes differ from those of the weights.
    """
    assigned = policy.assignment(np.exp(log_probs, dtype=np.float64))
    published = np.average(assigned, 0, row_weights)
    budgets = budget_grid(costs_ms)
    targets = np.stack([tilt(published, costs_ms, budget) for budget in budgets])
    scores = score_all(policy, log_probs)
    table = tabulate(scores, costs_ms, budgets, targets, weights=row_weights)
    return EENetPolicy(table, policy.scorer)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread: more gain little here, and wait for each other on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _alternate(problem: "_Problem", rounds: int, seed: int) -> "Iterator[_Candidate]":
    """Fit h and g in turns and yield a candidate after each turn."""
    generator = torch.Generator().manual_seed(seed)
    weights = problem.initial_weights()
    assignment = _Assignment(problem.num_features, len(problem.budgets), generator)
    for remaining in reversed(range(rounds + 1)):
        features, scores = problem.replay(weights)
        shares = _fit_assignment(assignment, features, scores, problem, generator)
        yield problem.candidate(weights, scores, shares)
        if remaining > 0:
            reached = shares.mean(2).T * problem.counts[:, None]
            weights = _fit_scores(weights, features, reached, problem)


class _Candidate(NamedTuple):
    """Score weights, the exit distribution of each budget (B, K), and mean calibration accuracy."""

    weights: tuple[Array, ...]
    distributions: Array
    accuracy: float


class _Problem(NamedTuple):
    """The calibration set, the budgets, and the steps of the fit that need both."""

    log_probs: NDArray[np.floating]  # (K, N, C) or (K, N, P, C)
    correct: Array  # (N, K)
    costs: Array  # (K,)
    budgets: Array  # (B,)
    use_vote: bool
    row_weights: Array | None  # (N,)

    @property
    def counts(self) -> Tensor:
        """How many rows each row counts for, (N,)."""
        if self.row_weights is None:
            return torch.ones(self.log_probs.shape[1])
        return torch.from_numpy(self.row_weights).float()

    @property
    def num_features(self) -> list[int]:
        num_exits, num_classes = len(self.log_probs), self.log_probs.shape[-1]
        return [num_classes + NUM_CONFIDENCES + k for k in range(num_exits)]

    def initial_weights(self) -> tuple[Array, ...]:
        """Return the weights at which the score is the max probability."""
        starts = [np.zeros(width) for width in self.num_features]
        for psi in starts:
            psi[self.log_probs.shape[-1]] = 1.0
        return tuple(starts)

    def replay(self, weights: tuple[Array, ...]) -> tuple[list[Tensor], Array]:
        """Return the features of each exit, K of (N, C + 3 + k), and scores (N, K), as served."""
        scorer = ExitScorer(weights)
        history = scorer.start(self.log_probs.shape[1])
        features, columns = [], []
        for k, rows in enumerate(self.log_probs):
            inputs, history = scorer.features(k, rows, history)
            scores = scorer.score_features(k, inputs, history).scores
            if not self.use_vote:
                inputs[:, rows.shape[-1] + NUM_CONFIDENCES - 1] = 0.0
            features.append(torch.from_numpy(inputs.astype(np.float32)))
            columns.append(scores)
        return features, np.stack(columns, 1)

    def candidate(self, weights: tuple[Array, ...], scores: Array, shares: Tensor) -> _Candidate:
        """Rate scores (N, K) and shares (K, N, B) by their mean accuracy over the budgets."""
        targets = np.average(shares.double().numpy(), 1, self.row_weights).T
        distributions = np.stack(
            [tilt(p, self.costs, b) for p, b in zip(targets, self.budgets, strict=True)]
        )
        accuracies = []
        for distribution, budget in zip(distributions, self.budgets, strict=True):
            thresholds = repaired_thresholds(
                scores, distribution, self.costs, budget, self.row_weights
            )
            exits = route(scores, thresholds)
            correct = self.correct[np.arange(len(exits)), exits]
            accuracies.append(np.average(correct, weights=self.row_weights))
        return _Candidate(weights, distributions, float(np.mean(accuracies)))

    def finish(self, best: _Candidate) -> EENetPolicy:
        """Interpolate the distributions (p . c stays exact) and tabulate the thresholds."""
        first, last = np.eye(len(self.costs))[[0, -1]]
        knots, values = (
            np.r_[self.costs[0], self.budgets, self.costs[-1]],
            np.stack([first, *best.distributions, last]),
        )
        grid = np.union1d(budget_grid(self.costs), self.budgets)
        targets = np.stack([np.interp(grid, knots, column) for column in values.T], 1)
        scores = score_all(_policy(best.weights), self.log_probs)
        table = tabulate(scores, self.costs, grid, targets, weights=self.row_weights)
        return EENetPolicy(table, ExitScorer(best.weights))


def _policy(weights: tuple[Array, ...]) -> EENetPolicy:
    """Make a policy that scores but has no thresholds yet."""
    return EENetPolicy(ThresholdTable.closed(len(weights)), ExitScorer(weights))


class _Assignment(nn.Module):
    """The assignment network h: two layers per exit, ReLU between, one raw output per budget.

    All budgets share the first layer. That fits them in the time of one, and no worse.
    """

    def __init__(
        self, num_features: list[int], num_budgets: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        widths = [min(MAX_WIDTH, max(2, width // 2)) for width in num_features]
        pairs = list(zip(num_features, widths, strict=True))
        self.first = nn.ModuleList(nn.Linear(inputs, width) for inputs, width in pairs)
        self.second = nn.ModuleList(nn.Linear(width, num_budgets) for width in widths)
        for layer in [*self.first, *self.second]:
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return the log of the assignment r, a softmax over exits, (K, N, B)."""
        raw = [
            second(torch.relu(first(inputs)))  # (N, B)
            for first, second, inputs in zip(self.first, self.second, features, strict=True)
        ]
        return torch.stack(raw).log_softmax(0)


def _fit_assignment(
    assignment: _Assignment,
    features: list[Tensor],
    scores: Array,
    problem: _Problem,
    generator: torch.Generator,
) -> Tensor:
    """Minimise L_h for all budgets and return r (K, N, B)."""
    costs = torch.from_numpy(problem.costs).float()
    budgets = torch.from_numpy(problem.budgets).float()
    target = torch.from_numpy(scores.T.clip(EPSILON, 1)).float()
    target = target / target.sum(0)  # p* with beta = 1, (K, N)
    num_exits, num_rows = problem.log_probs.shape[:2]
    rows = torch.randperm(num_rows, generator=generator)
    rows = rows[: max(ASSIGNMENT_VALUES // (num_exits * problem.log_probs.shape[-1]), 1)]
    seen, target = [inputs[rows] for inputs in features], target[:, rows]
    counts = problem.counts[rows]
    counts = counts / counts.sum()  # of each row in a mean, (rows,)
    entropy = (target * target.log()).sum(0) @ counts
    optimizer = torch.optim.Adam(assignment.parameters(), lr=ASSIGNMENT_LR)
    for _ in range(ASSIGNMENT_STEPS):
        optimizer.zero_grad()
        log_r = assignment(seen)
        divergence = entropy - counts @ (target[:, :, None] * log_r).sum(0)  # (B,)
        spent = costs @ (counts @ log_r.exp())
        loss = (KL_WEIGHT * divergence + COST_WEIGHT * (budgets - spent).abs() / budgets).sum()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        shares: Tensor = assignment(features).exp()
    return shares


def _fit_scores(
    weights: tuple[Array, ...], features: list[Tensor], shares: Tensor, problem: _Problem
) -> tuple[Array, ...]:
    """Minimise L_g, the cross-entropy of q against "right" weighted by shares (N, K) of rows."""
    psi = [nn.Parameter(torch.from_numpy(vector).float()) for vector in weights]
    correct = torch.from_numpy(problem.correct).float()
    row_weights = shares / shares.sum(0)
    optimizer = torch.optim.Adam(psi, lr=SCORE_LR)
    for _ in range(SCORE_STEPS):
        optimizer.zero_grad()
        losses = []
        for k, inputs in enumerate(features):
            # Straight-through: the clamp must not zero the gradient of scores outside (0, 1).
            raw = inputs @ psi[k]
            q = raw + (raw.clamp(EPSILON, 1 - EPSILON) - raw).detach()
            entropy = -(correct[:, k] * q.log() + (1 - correct[:, k]) * (1 - q).log())
            losses.append((row_weights[:, k] * entropy).sum())
        loss = torch.stack(losses).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return tuple(vector.detach().double().numpy() for vector in psi)
