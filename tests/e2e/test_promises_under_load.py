"""Policies and promises change while requests run, and none of them fails."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.bundles import without_certification
from tests.e2e.test_faults import Load, until

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import StartServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
REACHES_ALL_S = 0.05
# Else some front-ends would never be asked.
EACH_ON_A_NEW_CONNECTION = {"content-type": "image/jpeg", "connection": "close"}
FIRST_EXIT, LAST_EXIT = 0, 2
PROMISES = (
    ({"budget_ms": None, "max_disagreement": 0.9}, FIRST_EXIT, "stopping-label-free"),
    ({"max_disagreement": 0}, LAST_EXIT, "stopping"),
    ({"budget_ms": 1e-3}, FIRST_EXIT, "stopping"),
)


def test_a_new_promise_holds_at_every_engine_within_50_ms(
    start_processes: StartServer, several_fits: Path, images: Images
) -> None:
    layout = ("--front-ends", "2", "--engines", "2", "--engine-workers", "1")
    bundle = ("--bundle", str(several_fits), "--precision", "float32")
    with start_processes(*bundle, *layout) as server, ThreadPoolExecutor(16) as clients:

        def exit_of(file: bytes) -> int:
            answer = server.client.post("/predict", content=file, headers=EACH_ON_A_NEW_CONNECTION)
            return int(answer.json()["exit"])

        for change, exit, policy in PROMISES * 3:
            answer = server.client.put("/budget", json=change)
            assert answer.json()["models"][0]["policy"] == policy, answer.text
            time.sleep(REACHES_ALL_S)
            assert set(clients.map(exit_of, images.files[:32])) == {exit}


def test_no_request_fails_while_policies_and_promises_change(
    start_server: StartServer, several_fits: Path, images: Images
) -> None:
    bundle = ("--bundle", str(several_fits), "--precision", "float32", "--audit-share", "0.2")
    with start_server(*bundle) as server, Load(server, images) as load:
        for turn in range(4):
            for policy in ("maxprob", "stopping"):
                answer = server.client.post("/scheduler/reload", json={"policy": policy})
                assert answer.status_code == 200, answer.text
                change, *_ = PROMISES[turn % len(PROMISES)]
                assert server.client.put("/budget", json=change).status_code == 200
                load.wait_for(20)
            refused = server.client.post("/scheduler/reload", json={"policy": "nope"})
            assert refused.status_code == 422 and "maxprob" in refused.json()["detail"]
    assert set(load.statuses) == {200}


def test_audits_that_die_with_an_engine_are_counted_as_lost(
    start_processes: StartServer, several_fits: Path, images: Images
) -> None:
    layout = ("--front-ends", "1", "--engines", "2", "--engine-workers", "1", "--audit-share", "1")
    bundle = ("--bundle", str(several_fits), "--precision", "float32", "--budget-ms", "0.001")
    with start_processes(*bundle, *layout) as server:
        with Load(server, images) as load:
            load.wait_for(300)  # every answer leaves an audit behind, and users go first
            os.kill(server.pids["eenet-engine-0"], signal.SIGKILL)
            load.wait_for(50)

        def lost() -> int:
            return int(server.client.get("/audit").json()["models"][0]["lost"])

        until(lambda: lost() > 0)
        assert lost() <= 100  # those in flight and those of the last report
        server.client.put("/budget", json={"budget_ms": None})
        shown = server.client.get("/budget").json()["models"][0]
        assert shown["certified"] is None and "withdrawn" in shown["reason"]


def test_fronts_draw_every_request_until_a_promise_is_certified(
    start_processes: StartServer, several_fits: Path, images: Images, tmp_path: Path
) -> None:
    folder = without_certification(several_fits, tmp_path / "bundle")
    layout = ("--front-ends", "2", "--engines", "2", "--engine-workers", "1")
    promise = ("--max-disagreement", "0.05", "--audit-share", "0.001")
    bundle = ("--bundle", str(folder), "--precision", "float32")
    with start_processes(*bundle, *layout, *promise) as server:

        def certified() -> dict[str, Any] | None:
            shown = server.client.get("/budget").json()["models"][0]["certified"]
            return dict(shown) if shown else None

        assert certified() is None
        with Load(server, images) as load:
            until(lambda: certified() is not None)
            sent = len(load.answers)
        assert sent < 1500 and set(load.statuses) == {200}
        (audit,) = server.client.get("/audit").json()["models"]
        assert 59 <= audit["samples"] <= len(load.answers)
