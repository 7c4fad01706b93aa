from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.lifespan import last_call_end_s
from server.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Images

JPEG = {"content-type": "image/jpeg"}


@pytest.mark.parametrize(
    ("newest_s", "end_s"),
    [(-math.inf, 10.3), (9.0, 10.3), (10.2, 10.5), (11.1, 11.4), (12.0, 11.5)],
)
def test_connections_prolong_the_last_call_but_not_for_ever(newest_s: float, end_s: float) -> None:
    assert last_call_end_s(10.0, newest_s) == pytest.approx(end_s)


def renamed(bundle: Path, out: Path, name: str) -> Path:
    shutil.copytree(bundle, out)
    manifest = out / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"cifar10-resnet56"', f'"{name}"'))
    return out


@pytest.fixture(scope="module")
def two(shipped_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of an app with two models."""
    other = renamed(shipped_bundle, tmp_path_factory.mktemp("bundles") / "other", "other")
    with TestClient(create_app(Settings(bundle=(shipped_bundle, other)))) as client:
        yield client


def test_with_several_models_a_request_must_name_one(two: TestClient, images: Images) -> None:
    answer = two.post("/predict", content=images.files[0], headers=JPEG)
    assert answer.status_code == 422
    assert "cifar10-resnet56, other" in answer.json()["detail"]
    assert two.get("/frontier").status_code == 422
    named = two.post("/predict?model=other", content=images.files[0], headers=JPEG)
    assert named.json()["model"] == "other"


def test_each_model_has_a_budget_of_its_own(two: TestClient) -> None:
    two.put("/budget?model=other", json={"budget_ms": 3.0})
    two.put("/budget?model=cifar10-resnet56", json={"budget_ms": 2.0})
    budgets = {each["model"]: each["budget_ms"] for each in two.get("/budget").json()["models"]}
    assert budgets == {"cifar10-resnet56": 2.0, "other": 3.0}
    everyone = two.put("/budget", json={"budget_ms": 4.0}).json()["models"]
    assert [each["budget_ms"] for each in everyone] == [4.0, 4.0]


def test_two_bundles_of_one_name_do_not_start(shipped_bundle: Path) -> None:
    app = create_app(Settings(bundle=(shipped_bundle, shipped_bundle)))
    with pytest.raises(ValueError, match="two bundles are named"), TestClient(app):
        pass
