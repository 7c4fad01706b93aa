"""Bundles of format 1 are served as they were."""

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.cli.main import main
from server.settings import Settings
from tests.bundles import recorded_of, rewrite_as_format_1, scheduler_of, variant_of

TEXTS = ("a very good film", "the film was dull", "awful")


@pytest.fixture
def old_bundle(text_bundle: Path, tmp_path: Path) -> Path:
    return rewrite_as_format_1(Path(shutil.copytree(text_bundle, tmp_path / "old")))


def answers(bundle: Path) -> list[dict[str, Any]]:
    with TestClient(create_app(Settings(bundle=(bundle,)))) as client:
        given = [client.post("/predict", json={"text": text, "budget_ms": 1e6}) for text in TEXTS]
        assert [answer.status_code for answer in given] == [200] * len(TEXTS), given[0].text
        return [answer.json() for answer in given]


def test_a_bundle_of_format_1_answers_as_the_same_one_of_format_2(
    old_bundle: Path, text_bundle: Path
) -> None:
    assert json.loads((old_bundle / "bundle.json").read_text())["format_version"] == 1
    assert (old_bundle / "stages/0.onnx").is_file() and not (old_bundle / "float32/stages").exists()
    for before, now in zip(answers(old_bundle), answers(text_bundle), strict=True):
        assert before["label"] == now["label"] and before["exit"] == now["exit"]


def test_a_bundle_of_format_1_can_be_fitted_profiled_and_served_again(
    old_bundle: Path, fitting_quickly: Callable[[], AbstractContextManager[None]]
) -> None:
    before = recorded_of(old_bundle)
    with fitting_quickly():
        assert main(["fit", str(old_bundle), "--policy", "entropy"]) == 0
    quickly = ["--batch-sizes", "1", "--repeats", "2"]
    assert main(["profile", str(old_bundle), *quickly]) == 0
    assert json.loads((old_bundle / "bundle.json").read_text())["format_version"] == 2
    variant = variant_of(old_bundle)
    assert (variant.folder, variant.entry.policy) == (old_bundle, "entropy")
    assert scheduler_of(old_bundle).policy.kind == "entropy"
    assert recorded_of(old_bundle).test.labels.tolist() == before.test.labels.tolist()
    assert len(answers(old_bundle)) == len(TEXTS)
