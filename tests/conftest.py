import functools
import gc
import itertools
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

# The arrays here are small: threads would only wait for each other, and as many processes as there
# are cores may run tests. Read when numpy and torch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
from filelock import FileLock
from numpy.typing import NDArray

# Machines are shared: how long one example takes says nothing.
# CI tries as many examples as hypothesis does by itself.
EXAMPLES = 100 if "CI" in os.environ else 40
hypothesis.settings.register_profile("tests", deadline=None, max_examples=EXAMPLES)
hypothesis.settings.load_profile("tests")

# torch keeps a million objects alive, which a collection visits one by one. An export makes so many
# more that collections took a fifth of its time.
gc.set_threshold(100_000, 50, 50)


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays, so that no collection visits it again


Make = Callable[[Path], object]
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


@pytest.fixture(autouse=True)
def logging_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logging is as before after each test, whatever of `eenet serve` ran in this process."""
    root = logging.getLogger()
    uvicorn = logging.getLogger("uvicorn.error")
    before, levels = root.handlers[:], [(each, each.level) for each in (root, uvicorn)]
    hooks = [(sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")]
    for owner, name in hooks:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    yield
    logging.captureWarnings(False)
    root.handlers[:] = before
    for each, level in levels:
        each.setLevel(level)


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
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Make], Path]:
    """Makes a folder that takes long once for all processes that run these tests.

    The first process that needs it makes it, another waits until it is whole.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"

    def make_once(name: str, make: Make) -> Path:
        folder = shared / name
        whole = folder.with_name(f"{folder.name}.whole")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what an attempt that failed left
                make(folder)
                whole.touch()
        return folder

    return make_once


@pytest.fixture(scope="session")
def quick_exports() -> Iterator[None]:
    """Lets the exporter read its tables of operators once, which it else does for every graph."""
    import torch._export.utils as exporting
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    registry = functools.cache(ONNXRegistry.from_torchlib)
    operators = functools.cache(exporting._materialize_cpp_cia_ops)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(registry))
        patch.setattr(exporting, "_materialize_cpp_cia_ops", operators)
        yield


@pytest.fixture(scope="module")
def shortened() -> Iterator[None]:
    """The two families whose only setting is their classes get fewer layers of the same kind."""
    from models.networks import bottleneck_resnet, densenet

    short: list[tuple[Any, str, Any]] = [
        (
            bottleneck_resnet,
            "resnet56_3",
            lambda n: bottleneck_resnet.bottleneck_resnet((1,) * 3, n),
        ),
        (densenet, "densenet121_4", lambda n: densenet.densenet((1, 2), 4, n)),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for module, name, build in short:
            patch.setitem(module.FAMILIES, name, module.FAMILIES[name]._replace(build=build))
        yield


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


@pytest.fixture(scope="session")
def several_fits(
    shipped_bundle: Path,
    made_once: Callable[[str, Make], Path],
    fitting_quickly: Callable[[], AbstractContextManager[None]],
) -> Path:
    """The shipped bundle with two further fits in single precision; it starts with `stopping`."""

    def make(folder: Path) -> None:
        from models.bundle import load_bundle, rewrite_entry
        from server.pipeline.refit import refit

        shutil.copytree(shipped_bundle, folder)
        with fitting_quickly():
            refit(folder, policy="stopping", precision="float32", label_free=True)
            refit(folder, policy="maxprob", precision="float32")
        rewrite_entry(load_bundle(folder).variant("float32"), policy="stopping")

    return made_once("bundles/several-fits", make)


@pytest.fixture(scope="module")
def quick_fits(fitting_quickly: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with fitting_quickly():
        yield
