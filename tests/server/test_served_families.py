"""Each family of images from the command line to the answer, at every exit as torch has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from models.bundle import load_bundle
from server.app import create_app
from server.cli.main import main
from server.pipeline.runs import load_run
from server.settings import Settings

MSDNET = {
    "data": "cifar10",
    "base": 1,
    "step": 1,
    "step_mode": "even",
    "num_scales": 2,
    "num_channels": 4,
    "growth_factor": [1, 2],
    "prune": "max",
    "bn_factor": [1, 2],
    "num_blocks": 2,
    "growth_rate": 2,
    "bottleneck": True,
    "compression": 0.5,
    "reduction": 0.5,
}


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        pytest.param("resnet8", {}, marks=pytest.mark.slow),
        pytest.param("resnet18", {"exits": [2]}, marks=pytest.mark.slow),
        pytest.param("resnet56_3", {}, marks=pytest.mark.slow),
        pytest.param("densenet121_4", {}, marks=pytest.mark.slow),
        pytest.param("msdnet", MSDNET, marks=pytest.mark.slow),
    ],
)
def test_what_was_trained_is_what_answers(
    arch: str,
    settings: dict[str, Any],
    image_folder: Path,
    tmp_path: Path,
    building_quickly: Callable[[], AbstractContextManager[None]],
    shortened: None,
) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    trained = ["--epochs", "1", "--batch-size", "16", "--calibration-size", "12"]
    data = ["--dataset", str(image_folder), "--image-size", "32", "--settings"]
    folder, bundle = tmp_path / "run", tmp_path / "bundle"
    command = ["train", "--arch", arch, *data, str(tmp_path / "settings.json"), "--out"]
    assert main([*command, str(folder), *trained]) == 0
    with building_quickly():
        assert main(["build", str(folder), "--out", str(bundle), "--policy", "maxprob"]) == 0

    file = next((image_folder / "test/bee").iterdir()).read_bytes()
    with TestClient(create_app(Settings(bundle=(bundle,)))) as client:
        client.put("/budget", json={"budget_ms": None, "max_disagreement": 0})
        headers = {"content-type": "image/png"}
        answer = client.post("/predict?trace=true", content=file, headers=headers).json()
    (inputs,) = load_bundle(bundle).preprocessor(10**6)(file).state
    model = load_run(folder).model.eval()
    with torch.inference_mode():
        probs = model(torch.from_numpy(inputs)).softmax(-1)[:, 0]  # (K, C)
    assert answer["exit"] == len(probs) - 1 == answer["num_exits"] - 1
    expected = probs.max(-1).values.tolist()
    assert [step["confidence"] for step in answer["trace"]] == pytest.approx(expected, abs=1e-4)
    classes = ("ape", "bee", "cat")
    assert [step["label"] for step in answer["trace"]] == [
        classes[index] for index in probs.argmax(-1).tolist()
    ]
