"""The comparison with peers: what it prints, and that a server that dies ends no run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.harness import REPO
from benchmarks.peers.running import Started, starting
from tests.conformance import peers
from tests.conformance.image_checks import real_images
from tests.conformance.suite import CHECKS
from tests.conformance.target import JPEG, post, target_of

# It answers images and probes, and ends at any other path.
MORTAL = """
import http.server, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path not in ("/", "/page"):
            os._exit(1)
        self.answer(b"well")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(b'{"class_id": 1}')

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
ROUTES = peers.Routes("/predict", "/", "/page")


@contextmanager
def mortal(name: str) -> Iterator[Started]:
    command, file = [sys.executable, "-c", MORTAL, "PORT"], real_images()[0]
    is_ready = lambda url: post(target_of(url), file, JPEG) == "200"  # noqa: E731
    with starting(command, {"PYTHONPATH": str(REPO)}, "conformance-mortal", is_ready) as server:
        yield server


@pytest.mark.slow
def test_a_server_that_dies_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "running", mortal)
    monkeypatch.setitem(peers.ROUTES, "mortal", ROUTES)
    results = peers.attack("mortal", ["unknown_paths", "other_hosts"], 120)
    assert results["unknown_paths"].endswith("the server has ended")
    assert results["other_hosts"].startswith("falls: answered {'200'")
    assert peers.attack("mortal", ["other_hosts"], 0) == {"other_hosts": "not run: no time left"}


@pytest.mark.slow
def test_a_check_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "CHECK_S", 0.5)
    with mortal("") as server:
        target = peers.target_at(server, ROUTES)
        told, lives = peers.perform("mutated_bodies", server, target)
    assert told == "falls: no end within 0 s" and lives


@pytest.mark.parametrize(
    ("outcome", "told", "cell"),
    [
        ("holds", "sent 3; others at most 12 ms, probes 3 ms, +5 MiB", "holds, others wait 12 ms"),
        ("holds", "sent 3", "holds"),
        ("falls", "an image took 900 ms" + "x" * 100, "falls: an image took 900 ms" + "x" * 70),
    ],
)
def test_a_cell_is_short(outcome: str, told: str, cell: str) -> None:
    assert peers.cell(outcome, told) == cell


def test_every_check_that_peers_stand_is_one_of_the_suite() -> None:
    assert set(peers.CHECKS) <= {check.run for check in CHECKS}
    assert set(peers.ROUTES) - {"ours"} <= set(peers.PEERS)
    assert os.path.exists(peers.HERE / "litserve.txt")


def test_the_table_has_a_row_for_each_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "versions", lambda name: {"mosec": "0.9"})
    results = {"ours": {"hang_ups": "holds"}, "mosec": {"hang_ups": "falls: a|b"}}
    assert peers.table(results, ["hang_ups", "sigterm"]) == [
        "| check | ours | mosec 0.9 |",
        "|---|---|---|",
        "| `hang_ups` | holds | falls: a/b |",
        "| `sigterm` | not run | not run |",
    ]
