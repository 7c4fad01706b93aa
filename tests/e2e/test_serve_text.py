"""The server as `make serve` starts it: images and real texts over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from models.bundle import load_bundle
from scheduler.fitted import load_scheduler
from tests.bundles import offline_log_probs
from tests.e2e.conftest import served_precision

if TYPE_CHECKING:
    from tests.conftest import Images, Texts
    from tests.e2e.conftest import Server

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(start_server: Callable[..., AbstractContextManager[Server]]) -> Iterator[Server]:
    with start_server() as server:
        yield server


def test_the_shipped_bundles_are_both_there_and_ready_soon(server: Server) -> None:
    loaded = {model["model"] for model in server.client.get("/budget").json()["models"]}
    assert loaded == {"cifar10-resnet56", "ag-news-minilm"}
    assert server.ready_after_s < 10


def test_images_and_texts_are_answered_side_by_side(server: Server, images: Images) -> None:
    image = server.client.post(
        "/predict", content=images.files[0], headers={"content-type": "image/jpeg"}
    ).json()
    sport = "The striker scored twice in the second half and the team won the cup final."
    text = server.client.post("/predict", json={"text": sport}).json()
    assert (image["model"], text["model"]) == ("cifar10-resnet56", "ag-news-minilm")
    assert text["label"] == "Sports" and "truncated" not in text
    long = server.client.post("/predict", json={"text": sport * 50}).json()
    assert long["label"] == "Sports" and long["truncated"] is True
    assert server.client.post("/predict", json={"text": " \n"}).status_code == 422


@pytest.mark.slow
def test_answers_to_real_texts_are_those_of_the_graphs(
    server: Server, texts: Texts, shipped_text_bundle: Path
) -> None:
    """One by one and in lists, with and without a budget: each leaves with that exit's answer."""
    variant = load_bundle(shipped_text_bundle).variant(
        served_precision(server.client, "ag-news-minilm")
    )
    combiner = load_scheduler(variant.scheduler()).combiner
    expected = np.exp(combiner.combine_all(offline_log_probs(variant, texts.texts)))  # (K, N, C)
    classes = variant.bundle.manifest.classes
    for budget_ms in (None, 6.0):
        change = {"budget_ms": budget_ms, "max_disagreement": 0}
        server.client.put("/budget?model=ag-news-minilm", json=change)
        answers = []
        for start in range(0, len(texts.texts), 50):
            body = {"texts": texts.texts[start : start + 50]}
            answers += server.client.post("/predict", json=body).json()["predictions"]
        last = len(expected) - 1
        exits = np.array([answer["exit"] for answer in answers])
        assert (exits == last).all() if budget_ms is None else (exits < last).any()
        for row, answer in enumerate(answers):
            shown = {each["label"]: each["probability"] for each in answer["top_k"]}
            probs = expected[answer["exit"], row]
            for name, probability in zip(classes, probs, strict=True):
                assert shown[name] == pytest.approx(probability, abs=1e-3)
