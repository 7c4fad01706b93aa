"""An operator changes budgets of two models, well and badly, while both are loaded."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import Call, SideCalls, closed_loop

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
IMAGES, TEXTS = "cifar10-resnet56", "ag-news-minilm"
GOOD = (
    {"budget_ms": 1.5},
    {"budget_ms": 1e-6},
    {"budget_ms": 1e6},
    {"budget_ms": None, "max_disagreement": 0},
    {"measure": "end_to_end", "budget_ms": 3.0},
    {"measure": "compute"},
)
BAD = (b'{"budget_ms": 0}', b'{"budget_ms": "2"}', b'{"budget_ms": NaN}', b"{}", b"[")


def puts(model: str) -> list[Call]:
    """Changes that are taken, and after each one that is not."""
    bodies = itertools.chain.from_iterable(
        (json.dumps(good).encode(), bad)
        for good, bad in zip(itertools.cycle(GOOD), BAD * 12, strict=False)
    )
    return [Call(f"/budget?model={model}", body, "application/json", "PUT") for body in bodies]


@pytest.mark.slow
def test_no_request_is_dropped_and_each_model_keeps_its_own_budget(
    start_server: Callable[..., AbstractContextManager[Server]], images: Images
) -> None:
    text = json.dumps({"text": "Oil prices fell as OPEC members failed to agree."}).encode()
    calls = [
        call
        for file in images.files[:100]
        for call in (
            Call("/predict", file, "image/jpeg"),
            Call("/predict", text, "application/json"),
        )
    ]
    with start_server("--window", "200") as server:
        url = str(server.client.base_url)
        changes = puts(IMAGES)
        beside = [SideCalls(changes, np.linspace(0.2, 3.5, len(changes)))]
        server.client.put(f"/budget?model={TEXTS}", json={"budget_ms": 8.0})
        load = closed_loop(url, calls, ConnectionConfig(8), seconds=4.0, beside=beside)
        assert set(load.outcomes) == {"200"} and len(load.call) > 100
        told = load.beside[0].outcome.tolist()
        assert set(told[::2]) == {"200"}
        assert set(told[1::2]) == {"422", "400"}
        states = {each["model"]: each for each in server.client.get("/budget").json()["models"]}
    assert states[TEXTS]["budget_ms"] == 8.0
    assert states[IMAGES]["budget_ms"] != 8.0
    assert states[IMAGES]["samples"] > 0 and states[TEXTS]["samples"] > 0
