"""Fitting EENet: exit scores and exit distributions in turn, for all budgets at once."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scheduler.eenet import NUM_CONFIDENCES, EENetPolicy, ExitScorer
from scheduler.frontier import budget_grid, tabulate
from scheduler.policy import score_all
from scheduler.scheduler import Scheduler
from scheduler.thresholds import ThresholdTable, repaired_thresholds, route, tilt

Array = NDArray[np.float64]

COST_WEIGHT = 1e-2  # alpha_cost, as published
KL_WEIGHT = 1e-3  # weight of KL(p* || r), as published
SCORE_STEPS, ASSIGNMENT_STEPS = 60, 60
SCORE_LR, ASSIGNMENT_LR = 3e-3, 2e-2
EPSILON = 1e-4  # keeps the logarithms of the clamped scores finite


def fit_eenet(
    log_probs: NDArray[np.floating],
    labels: NDArray[np.int64],
    costs_ms: Array,
    *,
    seed: int = 0,
    rounds: int = 4,
    restarts: int = 2,
    num_budgets: int = 24,
    use_vote: bool = True,
) -> Scheduler:
    """Fit exit scores g and, per budget, the exit assignment h (Ilhan et al. 2024, section 3).

    g and h take turns: h learns to spend each budget on the exits whose scores promise most, g
    learns P(correct) on the rows that h sends to each exit, averaged over the budgets so that one g
    serves them all. The g with the best mean calibration accuracy over the budgets, each repaired
    to feasibility, is kept; the start (score = max probability) is among the candidates.

    Args:
        log_probs: Calibration log-probabilities, (K, N, C).
        labels: (N,).
        costs_ms: Latency from the start until each exit, rising, (K,).
        seed: Of the assignment networks.
        rounds: Alternations per restart.
        restarts: Independent starts.
        num_budgets: Budgets the assignment is fitted for; between them the exit distribution is
            interpolated.
        use_vote: Let the scores see the vote (the paper does, the published code does not).

    Returns:
        The policy with thresholds for every budget between the first and the last cost.
    """
    problem = _Problem.of(log_probs, labels, costs_ms, num_budgets, use_vote)
    candidates = []
    for restart in range(restarts):
        torch.manual_seed(seed + restart)
        weights = problem.initial_weights()
        assignment = _Assignment(problem.num_features, len(problem.budgets))
        for _ in range(rounds):
            features, scores = problem.replay(weights)
            shares = _fit_assignment(assignment, features, scores, problem)
            candidates.append(problem.candidate(weights, shares))
            weights = _fit_scores(weights, features, shares.mean(0), problem)
        features, scores = problem.replay(weights)
        candidates.append(
            problem.candidate(weights, _fit_assignment(assignment, features, scores, problem))
        )
    best = max(candidates, key=lambda candidate: candidate.accuracy)
    return problem.finish(best)


class _Candidate(NamedTuple):
    """Score weights, the exit distribution of each budget (B, K), and mean calibration accuracy."""

    weights: tuple[Array, ...]
    distributions: Array
    accuracy: float


class _Problem(NamedTuple):
    log_probs: NDArray[np.floating]  # (K, N, C)
    correct: NDArray[np.bool_]  # (N, K)
    costs: Array  # (K,)
    budgets: Array  # (B,)
    use_vote: bool

    @classmethod
    def of(
        cls,
        log_probs: NDArray[np.floating],
        labels: NDArray[np.int64],
        costs: Array,
        num_budgets: int,
        use_vote: bool,
    ) -> "_Problem":
        correct = (log_probs.argmax(-1) == labels).T
        inner = np.linspace(costs[0], costs[-1], num_budgets + 2)[1:-1]
        return cls(log_probs, correct, costs, inner, use_vote)

    @property
    def num_features(self) -> list[int]:
        num_exits, _, num_classes = self.log_probs.shape
        return [num_classes + NUM_CONFIDENCES + k for k in range(num_exits)]

    def initial_weights(self) -> tuple[Array, ...]:
        """Score = max probability."""
        starts = [np.zeros(width) for width in self.num_features]
        for psi in starts:
            psi[self.log_probs.shape[-1]] = 1.0
        return tuple(starts)

    def replay(self, weights: tuple[Array, ...]) -> tuple[list[Tensor], Array]:
        """Features of every exit, K of (N, C + 3 + k), and scores (N, K), as served."""
        scorer = ExitScorer(weights)
        history = scorer.start(self.log_probs.shape[1])
        features, columns = [], []
        for k, rows in enumerate(self.log_probs):
            inputs, _ = scorer.features(k, rows, history)
            scores, history = scorer.score(k, rows, history)
            if not self.use_vote:
                inputs[:, rows.shape[-1] + NUM_CONFIDENCES - 1] = 0.0
            features.append(torch.from_numpy(inputs).float())
            columns.append(scores)
        return features, np.stack(columns, 1)

    def candidate(self, weights: tuple[Array, ...], shares: Tensor) -> _Candidate:
        """Judge scores and shares (B, N, K) by the accuracy they reach under every budget."""
        scores = score_all(_policy(weights), self.log_probs)
        wanted = shares.mean(1).double().numpy()
        distributions = np.stack(
            [tilt(p, self.costs, b) for p, b in zip(wanted, self.budgets, strict=True)]
        )
        accuracies = []
        for distribution, budget in zip(distributions, self.budgets, strict=True):
            exits = route(scores, repaired_thresholds(scores, distribution, self.costs, budget))
            accuracies.append(self.correct[np.arange(len(exits)), exits].mean())
        return _Candidate(weights, distributions, float(np.mean(accuracies)))

    def finish(self, best: _Candidate) -> Scheduler:
        """Interpolate the distributions (p . c stays exact) and tabulate the thresholds."""
        first, last = np.eye(len(self.costs))[[0, -1]]
        knots, values = (
            np.r_[self.costs[0], self.budgets, self.costs[-1]],
            np.stack([first, *best.distributions, last]),
        )
        grid = budget_grid(self.costs)
        distributions = np.stack([np.interp(grid, knots, column) for column in values.T], 1)
        scores = score_all(_policy(best.weights), self.log_probs)
        table, frontier = tabulate(scores, self.correct, self.costs, grid, distributions)
        return Scheduler(EENetPolicy(ExitScorer(best.weights), table), frontier)


def _policy(weights: tuple[Array, ...]) -> EENetPolicy:
    """A policy that scores but has no thresholds yet."""
    return EENetPolicy(
        ExitScorer(weights), ThresholdTable(np.zeros(1), np.zeros((1, len(weights))))
    )


class _Assignment(nn.Module):
    """h for B budgets at once: B two-layer networks side by side per exit, raw outputs."""

    def __init__(self, num_features: list[int], num_budgets: int) -> None:
        super().__init__()
        self.first, self.second = nn.ModuleList(), nn.ModuleList()
        for width in num_features:
            hidden = min(64, max(2, width // 2))
            self.first.append(nn.Linear(width, num_budgets * hidden))
            self.second.append(nn.Linear(hidden, num_budgets))
        self.num_budgets = num_budgets

    def forward(self, features: list[Tensor]) -> Tensor:
        """Log of the assignment r, softmax over exits, (B, N, K)."""
        raw = []
        for first, second, inputs in zip(self.first, self.second, features, strict=True):
            hidden = torch.relu(first(inputs)).view(len(inputs), self.num_budgets, -1)  # (N, B, D)
            weight, bias = second.get_parameter("weight"), second.get_parameter("bias")
            raw.append((hidden * weight).sum(-1) + bias)  # (N, B)
        return torch.stack(raw, -1).transpose(0, 1).log_softmax(-1)


def _fit_assignment(
    assignment: _Assignment, features: list[Tensor], scores: Array, problem: _Problem
) -> Tensor:
    """Minimise L_h for all budgets and return r (B, N, K)."""
    costs = torch.from_numpy(problem.costs).float()
    budgets = torch.from_numpy(problem.budgets).float()
    target = torch.from_numpy(scores.clip(EPSILON, 1)).float()
    target = target / target.sum(1, keepdim=True)  # p* with beta = 1
    optimizer = torch.optim.Adam(assignment.parameters(), lr=ASSIGNMENT_LR)
    for _ in range(ASSIGNMENT_STEPS):
        optimizer.zero_grad()
        log_r = assignment(features)
        divergence = (target * (target.log() - log_r)).sum(-1).mean(1)
        spent = (log_r.exp() @ costs).mean(1)
        loss = (KL_WEIGHT * divergence + COST_WEIGHT * (budgets - spent).abs() / budgets).sum()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        shares: Tensor = assignment(features).exp()
    return shares


def _fit_scores(
    weights: tuple[Array, ...], features: list[Tensor], shares: Tensor, problem: _Problem
) -> tuple[Array, ...]:
    """Minimise L_g, the cross-entropy of q against "right" weighted by shares (N, K)."""
    psi = [nn.Parameter(torch.from_numpy(vector).float()) for vector in weights]
    correct = torch.from_numpy(problem.correct).float()
    row_weights = shares / shares.sum(0)
    optimizer = torch.optim.Adam(psi, lr=SCORE_LR)
    for _ in range(SCORE_STEPS):
        optimizer.zero_grad()
        losses = []
        for k, inputs in enumerate(features):
            # The clamp must not kill the gradient of scores outside (0, 1): pass it straight
            # through.
            raw = inputs @ psi[k]
            q = raw + (raw.clamp(EPSILON, 1 - EPSILON) - raw).detach()
            entropy = -(correct[:, k] * q.log() + (1 - correct[:, k]) * (1 - q).log())
            losses.append((row_weights[:, k] * entropy).sum())
        loss = torch.stack(losses).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return tuple(vector.detach().double().numpy() for vector in psi)
