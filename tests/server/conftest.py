import functools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from models.bundle import write_manifest
from profiling.calibration import Recorded, save_recorded
from scheduler.scheduler import FILES
from server.app import create_app
from server.fit_command import refit
from server.settings import Settings


@pytest.fixture(scope="module")
def client(shipped_bundle: Path) -> Iterator[TestClient]:
    """A client of an app that serves the shipped bundle."""
    with TestClient(create_app(Settings(bundle=(shipped_bundle,), window=100))) as client:
        yield client


@pytest.fixture(scope="session")
def refitted(
    shipped_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
    fitting_quickly: Callable[[], AbstractContextManager[None]],
) -> Callable[[str], Path]:
    """Makes copies of the shipped bundle, one for each policy that is asked for."""

    @functools.cache
    def copy(policy: str) -> Path:
        folder = tmp_path_factory.mktemp(policy) / "bundle"
        shutil.copytree(shipped_bundle, folder)
        with fitting_quickly():
            refit(folder, policy=policy)
        return folder

    return copy


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[[Recorded], Path]:
    """Makes bundles of predictions at 3 exits; graphs and scheduler are stand-ins."""

    def make(recorded: Recorded) -> Path:
        folder = tmp_path / "work" / "bundle"
        graphs = [f"{part}/{k}.onnx" for part in ("stages", "heads") for k in range(3)]
        for name in (*FILES, *graphs):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(f"stand-in for {name}".encode())
        (folder / "profile.json").write_text(json.dumps({"costs_ms": [1.0, 2.0, 3.3]}))
        save_recorded(recorded, folder / "calibration.npz")
        write_manifest(
            folder,
            name="pets",
            version="4",
            task="image",
            classes=("ape", "bee", "cat", "dog"),
            num_exits=3,
            preprocessing={"height": 8, "width": 8, "mean": (0.5, 0.5, 0.5), "std": (1, 1, 1)},
            default_budget_ms=1.5,
            training={"epochs": 3},
        )
        return folder

    return make
