"""Refusals are counted, and logged once a second for each reason, wherever they come from."""

from __future__ import annotations

import base64
import hashlib
import itertools
import logging
import re
from collections import Counter
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.errors import MalformedRequest, NotReady, ServeError, Unauthorized
from server.refusals import RefusalLog
from server.settings import Settings
from tests.models.image_files import png_with

LINE = re.compile(r"refused, (\w+): ")


class Counts:
    def __init__(self) -> None:
        self.rejected = Counter[str]()

    def observe_request(self, route: str, status: int) -> None: ...

    def count_rejected(self, reason: str) -> None:
        self.rejected[reason] += 1


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records]
    return [each for each in messages if LINE.match(each)]


def test_refusals_are_counted_and_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    now, counts = [0.0], Counts()
    refusals = RefusalLog(counts, clock=lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for _ in range(500):
            refusals.record_error(MalformedRequest("it is not HTTP"))
            refusals.record("idle", "an idle one")
        now[0] = 1.5
        refusals.record_error(MalformedRequest("it is not HTTP"))
    assert counts.rejected == {"malformed": 501, "idle": 500}
    assert lines(caplog) == [
        "refused, malformed: it is not HTTP",
        "refused, idle: an idle one",
        "refused, malformed: it is not HTTP (and 499 more since the last such line)",
    ]


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (MalformedRequest("no JSON"), {}),
        (Unauthorized("no key"), {"unauthorized": 1}),
        (NotReady("it drains"), {"not_ready": 1}),
    ],
    ids=["malformed", "unauthorized", "not-ready"],
)
def test_an_answer_is_a_refusal_if_its_error_has_a_reason(
    error: ServeError, counted: dict[str, int]
) -> None:
    counts = Counts()
    RefusalLog(counts).record_if_refusal(error)
    assert counts.rejected == counted


def test_without_counts_refusals_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        RefusalLog().record("idle", "an idle one")
    assert lines(caplog) == ["refused, idle: an idle one"]


def test_every_way_through_the_app_counts_and_logs(
    shipped_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("api", "admin"):
        (tmp_path / name).write_text(f"sha256:{hashlib.sha256(name.encode()).hexdigest()} me")
    keys = {"api_keys": tmp_path / "api", "admin_keys": tmp_path / "admin"}
    app = create_app(Settings(bundle=(shipped_bundle,), max_pixels=10_000, **keys))
    seconds = itertools.count(step=2)
    app.state.refusals._clock = lambda: next(seconds)  # so that every refusal has its line
    large = png_with([], side=200)
    api, admin = ({"authorization": f"Bearer {name}"} for name in ("api", "admin"))
    png = {"content-type": "image/png"}
    requests = [
        ("unauthorized", "POST", "/predict", {"content": large, "headers": png}),
        ("forbidden", "POST", "/predict", {"content": large, "headers": png | admin}),
        ("unauthorized", "GET", "/budget", {}),
        ("image_pixels", "POST", "/predict", {"content": large, "headers": png | api}),
        ("image_pixels", "POST", "/predict", {"files": {"file": large}, "headers": api}),
        (
            "image_pixels",
            "POST",
            "/predict",
            {"json": {"images": [base64.b64encode(large).decode()]}, "headers": api},
        ),
        ("body_too_large", "PUT", "/budget", {"content": bytes(70_000), "headers": admin}),
    ]
    with TestClient(app) as client, caplog.at_level(logging.WARNING):
        for _, method, path, given in requests:
            client.request(method, path, **given)
        text = client.get("/metrics", headers=admin).text
        assert client.get("/readyz").status_code == 200
    reasons = [reason for reason, *_ in requests]
    assert [LINE.match(each)[1] for each in lines(caplog)] == reasons  # type: ignore[index]
    for reason, count in Counter(reasons).items():
        assert f'eenet_rejected_total{{reason="{reason}"}} {count}.0' in text
