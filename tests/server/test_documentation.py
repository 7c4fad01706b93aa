from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.routes.documentation import ASSETS
from server.settings import Settings

FOLDER = files("server") / "swagger_ui"
# Of swagger-ui-dist 5.35.0 from npm; none of these files was changed.
SHA256 = {
    "LICENSE": "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
    "favicon-32x32.png": "3ed612f41e050ca5e7000cad6f1cbe7e7da39f65fca99c02e99e6591056e5837",
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui-bundle.js.LICENSE.txt": (
        "37eb6e7e59aed57b2c1acf076574b818ea07b74265717e0bd67b59e0baf9abbb"
    ),
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}
OURS = {"index.html", "start.js"}


@pytest.fixture
def client() -> Iterator[TestClient]:
    yield TestClient(create_app(Settings()))  # not started: the pages need no model


def test_the_files_are_those_of_swagger_ui_and_two_of_ours() -> None:
    found = {each.name: each.read_bytes() for each in FOLDER.iterdir()}
    assert set(found) == set(SHA256) | OURS
    digests = {name: hashlib.sha256(found[name]).hexdigest() for name in SHA256}
    assert digests == SHA256
    assert sum(map(len, found.values())) < 2 * 10**6
    assert "swagger-ui-dist 5.35.0" in Path("NOTICE").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_names_files_of_this_server_alone(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named = set(re.findall(r'(?:src|href)="([^"]*)"', page.text))
    assert named == {"openapi.json", *(f"docs/assets/{name}" for name in ASSETS)}
    for name in named:  # as a browser resolves what is relative to /docs
        answer = client.get(f"/{name}")
        assert answer.status_code == 200 and answer.content
    assert "//" not in page.text.removeprefix("<!DOCTYPE html>")
    assert 'url: "openapi.json"' in client.get("/docs/assets/start.js").text


def test_the_page_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    policy = client.get("/docs").headers["content-security-policy"]
    directives = dict(each.strip().split(" ", 1) for each in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == directives["connect-src"] == "'self'"
    assert "http" not in policy and "<script>" not in client.get("/docs").text
    asset = client.get("/docs/assets/swagger-ui.css")
    assert asset.headers["x-content-type-options"] == "nosniff"
    assert asset.headers["content-type"].startswith("text/css")
    assert asset.headers["cache-control"] == "public, max-age=3600"


@pytest.mark.parametrize("path", ["/redoc", "/docs/assets/nope.js", "/docs/assets/LICENSE"])
def test_there_is_nothing_else(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.slow
def test_under_a_root_path() -> None:
    for prefix in ("", "/ml"):
        client = TestClient(create_app(Settings(root_path="/ml")))
        for path in ("/docs", "/docs/assets/start.js"):
            assert client.get(prefix + path).status_code == 200
        document = client.get(f"{prefix}/openapi.json")
        assert document.headers["content-type"] == "application/json"
        assert document.json()["servers"] == [{"url": "/ml"}]
