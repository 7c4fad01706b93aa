import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

# The networks here are tiny: threads would only wait for each other. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPO = Path(__file__).resolve().parent.parent


class Images(NamedTuple):
    """300 test images of CIFAR-10 (JPEG re-encoded), and their rows in the test set."""

    files: list[bytes]
    labels: list[int]
    rows: list[int]


class Texts(NamedTuple):
    """300 test texts of AG News, and their rows in the test set."""

    texts: list[str]
    labels: list[int]
    rows: list[int]


@pytest.fixture(scope="session")
def texts() -> Texts:
    lines = (REPO / "tests/data/ag_news_test_300.tsv").read_text("utf-8").strip().split("\n")[1:]
    rows, labels, texts = zip(*(line.split("\t") for line in lines), strict=True)
    return Texts(list(texts), list(map(int, labels)), list(map(int, rows)))


@pytest.fixture(scope="session")
def images() -> Images:
    with np.load(REPO / "tests/data/cifar10_test_300.npz") as arrays:
        blob, off = arrays["blob"].tobytes(), arrays["off"].tolist()
        files = [blob[a:b] for a, b in itertools.pairwise(off)]
        return Images(files, arrays["y"].tolist(), arrays["row"].tolist())


@pytest.fixture(scope="session")
def shipped_bundle() -> Path:
    return REPO / "models/zoo/cifar10-resnet56"


@pytest.fixture(scope="session")
def shipped_text_bundle() -> Path:
    return REPO / "models/zoo/ag-news-minilm"


@pytest.fixture(scope="session")
def make_probs() -> Callable[..., tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Makes probabilities (K, N, C) of 3 exits and 4 classes, and labels (N,) if none are given.

    Later exits are surer and more often right.
    """

    def make(
        rows: int, seed: int = 0, labels: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        rng, exits, classes = np.random.default_rng(seed), 3, 4
        labels = rng.integers(0, classes, rows) if labels is None else labels
        easiness = rng.uniform(0, 1, (rows, 1))
        towards_label = easiness * np.eye(classes)[labels]
        logits = np.stack(
            [
                rng.normal(size=(rows, classes)) + strength * towards_label
                for strength in np.linspace(2, 7, exits)
            ]
        )
        weights = np.exp(logits)
        return weights / weights.sum(-1, keepdims=True), labels

    return make


@pytest.fixture(scope="session")
def fitting_quickly() -> Callable[[], AbstractContextManager[None]]:
    """Makes contexts in which fits take few steps and know few budgets."""

    @contextmanager
    def quickly() -> Iterator[None]:
        import scheduler.fitting.eenet
        import scheduler.fitting.stopping
        import scheduler.frontier
        import scheduler.thresholds

        with pytest.MonkeyPatch.context() as patch:
            for module in (scheduler.frontier, scheduler.fitting.stopping):
                patch.setattr(module, "GRID_STEP", 0.1)
            patch.setattr(scheduler.thresholds, "REPAIR_STEPS", 15)
            patch.setattr(scheduler.fitting.eenet, "NUM_BUDGETS", 4)
            for name in ("SCORE_STEPS", "ASSIGNMENT_STEPS"):
                patch.setattr(scheduler.fitting.eenet, name, 2)
            yield

    return quickly


@pytest.fixture(scope="module")
def quick_fits(fitting_quickly: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with fitting_quickly():
        yield
