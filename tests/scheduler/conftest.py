from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

Problem = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]


@pytest.fixture(scope="session")
def make_problem() -> Callable[..., Problem]:
    """Makes log-probabilities (K, N, C), labels (N,), costs (K,): later exits are surer and more
    often right, and easy rows are right from the first exit on.
    """

    def make(rows: int = 800, classes: int = 5, seed: int = 0) -> Problem:
        rng = np.random.default_rng(seed)
        costs_ms = np.array([1.0, 1.1, 1.3])
        labels = rng.integers(0, classes, rows)
        easiness = rng.uniform(0, 1, (rows, 1))
        logits = np.stack(
            [
                rng.normal(size=(rows, classes))
                + strength * easiness * np.eye(classes)[labels] * rng.uniform(0.5, 1.5, (rows, 1))
                for strength in (3.0, 5.0, 8.0)
            ]
        )
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return log_probs, labels, costs_ms

    return make
