"""Each kind of task is served by several processes as by one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import running_server

if TYPE_CHECKING:
    from tests.conftest import Texts

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
ALONE, TOGETHER = ("--front-ends", "0"), ("--front-ends", "1", "--engines", "2")


def test_texts_alone(shipped_text_bundle: Path, texts: Texts) -> None:
    answers = []
    for layout in (ALONE, TOGETHER):
        with running_server("--bundle", str(shipped_text_bundle), *layout) as server:
            server.client.put("/budget", json={"budget_ms": None, "max_disagreement": 0})
            many = {"texts": texts.texts[:40]}
            told = server.client.post("/predict", json=many).json()["predictions"]
            answers.append([each["class_id"] for each in told])
    assert answers[0] == answers[1]


def test_masks(mask_bundle: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
    files = [io.BytesIO() for _ in pixels]
    for file, each in zip(files, pixels, strict=True):
        Image.fromarray(each).save(file, "PNG")
    answers = []
    for layout in (ALONE, TOGETHER):
        with running_server("--bundle", str(mask_bundle), *layout) as server:
            server.client.put("/budget", json={"budget_ms": None, "max_disagreement": 0})
            answers.append(
                [
                    server.client.post(
                        "/predict", content=f.getvalue(), headers={"content-type": "image/png"}
                    ).json()
                    for f in files
                ]
            )
    for one, several in zip(*answers, strict=True):
        assert one["mask"] == several["mask"] and one["class_id"] == several["class_id"]


def test_traces_are_alike(shipped_text_bundle: Path, texts: Texts) -> None:
    traces = []
    for layout in (ALONE, TOGETHER):
        with running_server("--bundle", str(shipped_text_bundle), *layout) as server:
            server.client.put("/budget", json={"budget_ms": None, "max_disagreement": 0})
            told = server.client.post("/predict", json={"text": texts.texts[0], "trace": True})
            traces.append(told.json()["trace"])
    for one, several in zip(*traces, strict=True):
        for name in ("exit", "label", "threshold"):
            assert one[name] == several[name]
        for name in ("confidence", "score"):
            assert one[name] == pytest.approx(several[name], abs=1e-5)
