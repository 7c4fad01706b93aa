"""The accuracy of a policy that was fitted without labels, counted with labels."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scheduler.frontier import Frontier
from scheduler.pixels import correct_share
from scheduler.policy import ExitPolicy, exits_taken, replay

MAX_POINTS = 64


def with_label_accuracy(
    policy: ExitPolicy,
    frontier: Frontier,
    log_probs: NDArray[np.floating],
    labels: NDArray[np.int64],
) -> Frontier:
    """Return the frontier with the accuracy by labels in place of the agreement with the last exit.

    It is counted at 64 points spread over the cost, and linear in between.

    Args:
        policy: A policy that was fitted to the last exit's answers.
        frontier: Its frontier.
        log_probs: The rows that it was fitted to, (K, N, C) or (K, N, P, C).
        labels: (N,) or (N, P).
    """
    points, correct = frontier.spread(MAX_POINTS), correct_share(log_probs, labels)
    replayed, rows = replay(policy, log_probs), np.arange(len(correct))
    accuracy = [
        correct[rows, exits_taken(policy, replayed, parameter)].mean()
        for parameter in points.parameters.tolist()
    ]
    expected = np.interp(frontier.expected_costs_ms, points.expected_costs_ms, accuracy)
    return replace(frontier, expected_accuracy=expected, reference="labels")
