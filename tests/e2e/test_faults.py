"""Processes die, hang and come back under load: only what the dead one held is lost."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
import pytest

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import Server, StartServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
JPEG = {"content-type": "image/jpeg"}
CLIENTS = 8
ONE_BY_ONE = ("--engine-workers", "1", "--max-batch", "1")
RESET = 0  # stands for a connection that broke
# An engine that runs an image of one shade of grey dies.
POISON = """
import os, sys
import numpy as np
import models.runtime.onnx_backend as backends
run = backends.OnnxBackend.run_stage
def poisoned(self, stage, state):
    pixels = np.asarray(state[0])
    grey = np.where(pixels.dtype == np.uint8, 77, (77 / 255 - 0.485) / 0.229)
    if stage == 0 and (abs(pixels[:, 0] - grey) < 1e-3).all(axis=(1, 2)).any():
        os._exit(9)
    return run(self, stage, state)
backends.OnnxBackend.run_stage = poisoned
from server.cli.main import main
sys.exit(main())
"""
# Every engine but the first that starts fails at once.
STILLBORN = """
import os, sys
import server.processes.engine_host as host
load = host.open_runner
def stillborn(*given):
    if os.path.exists(sys.argv[-1] + "/now"):
        os._exit(5)
    return load(*given)
host.open_runner = stillborn
from server.cli.main import main
folder = sys.argv.pop()
sys.argv.append(folder)
sys.exit(main(sys.argv[1:-1]))
"""


class Answer(NamedTuple):
    """What came back for an image."""

    place: int
    status: int
    class_id: int | None
    request_id: str


class Load:
    """Clients that send images one after another, and what they were told."""

    def __init__(self, server: Server, images: Images) -> None:
        self.answers: list[Answer] = []
        self._url, self._files = str(server.client.base_url), images.files
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._send, args=(each,)) for each in range(CLIENTS)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a request was never answered"

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in list(self.answers))

    def wait_for(self, count: int) -> None:
        """Wait until so many more have been answered."""
        wanted = len(self.answers) + count
        until(lambda: len(self.answers) >= wanted)

    def _send(self, client: int) -> None:
        count = 0
        http = httpx.Client(base_url=self._url, timeout=30, verify=False)
        while not self._stop.is_set():
            place, request_id = (client + CLIENTS * count) % 100, f"{client}-{count}"
            count += 1
            try:
                answer = http.post(
                    "/predict",
                    content=self._files[place],
                    headers=JPEG | {"x-request-id": request_id},
                )
            except httpx.TransportError:
                self.answers.append(Answer(place, RESET, None, request_id))
                http.close()
                http = httpx.Client(base_url=self._url, timeout=30, verify=False)
                time.sleep(0.02)
                continue
            told = answer.json()
            assert told["request_id"] == request_id, "an answer went to another request"
            self.answers.append(Answer(place, answer.status_code, told.get("class_id"), request_id))
        http.close()

    def assert_right(self, expected: list[int]) -> None:
        wrong = [a for a in self.answers if a.status == 200 and a.class_id != expected[a.place]]
        assert not wrong


def until(holds: Callable[[], bool], patience_s: float = 30) -> None:
    ends_s = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < ends_s, "it never came true"
        time.sleep(0.01)


@contextmanager
def whole(start: StartServer, bundle: Path, *options: str, **entry: object) -> Iterator[Server]:
    """A server of two front-ends and two engines that runs everything to the end."""
    flags = ("--bundle", str(bundle), "--front-ends", "2", "--engines", "2", *ONE_BY_ONE, *options)
    with start(*flags, **entry) as server:
        server.client.put("/budget", json={"budget_ms": None, "max_disagreement": 0})
        yield server


def answers_of(server: Server, images: Images) -> list[int]:
    return [
        server.client.post("/predict", content=file, headers=JPEG).json()["class_id"]
        for file in images.files[:100]
    ]


def metric(server: Server, name: str) -> float:
    lines = server.client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def ready(server: Server) -> bool:
    try:
        url = f"{server.client.base_url}/readyz"
        return httpx.get(url, timeout=5, verify=False).status_code == 200
    except httpx.TransportError:
        return False


def restarted(server: Server, name: str, before: int) -> bool:
    return server.pids.get(name, before) != before


def test_an_engine_that_is_killed_loses_only_what_it_executed(
    start_processes: StartServer, shipped_bundle: Path, images: Images
) -> None:
    with whole(start_processes, shipped_bundle) as server:
        expected = answers_of(server, images)
        with Load(server, images) as load:
            load.wait_for(50)
            for name in ("eenet-engine-0", "eenet-engine-1"):
                before = server.pids[name]
                os.kill(before, signal.SIGKILL)
                load.wait_for(50)
                until(lambda n=name, b=before: restarted(server, n, b) and ready(server))
                load.wait_for(50)
        load.assert_right(expected)
        statuses = load.statuses
        assert set(statuses) <= {200, 500} and statuses[500] <= 2
        until(lambda: metric(server, 'eenet_process_restarts_total{role="engine"}') == 2)
        assert metric(server, "eenet_predictions_total{") == statuses[200] + 100
        assert metric(server, "eenet_inflight_samples") == 0


@pytest.mark.slow
def test_a_front_end_that_is_killed_resets_only_its_own_clients(
    start_processes: StartServer, shipped_bundle: Path, images: Images
) -> None:
    with whole(start_processes, shipped_bundle) as server:
        expected = answers_of(server, images)
        with Load(server, images) as load:
            load.wait_for(50)
            before = server.pids["eenet-front-e-0"]
            os.kill(before, signal.SIGKILL)
            load.wait_for(50)
            until(lambda: restarted(server, "eenet-front-e-0", before))
            load.wait_for(200)
        load.assert_right(expected)
        statuses = load.statuses
        # Each client loses at most the request that was on its way.
        assert set(statuses) <= {200, RESET} and statuses[RESET] <= 2 * CLIENTS
        until(lambda: ready(server))
        assert server.client.get("/audit").status_code == 200


def test_when_control_is_killed_everything_ends(
    start_processes: StartServer, shipped_bundle: Path, images: Images
) -> None:
    with whole(start_processes, shipped_bundle) as server:
        pids = server.pids
        with Load(server, images) as load:
            load.wait_for(50)
            server.process.kill()
            assert server.process.wait(5) != 0
            until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()), 5)
            load.wait_for(8)
    assert set(load.statuses) == {200, RESET}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seconds"), [("eenet-engine-0", 5), ("eenet-front-e-1", 2)])
def test_a_process_that_stops_for_seconds_holds_up_nobody_else_and_goes_on(
    start_processes: StartServer, shipped_bundle: Path, images: Images, name: str, seconds: float
) -> None:
    with whole(start_processes, shipped_bundle) as server:
        expected = answers_of(server, images)
        pid = server.pids[name]
        with Load(server, images) as load:
            load.wait_for(50)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            assert "engine" not in name or ready(server)
            os.kill(pid, signal.SIGCONT)
            load.wait_for(100)
        load.assert_right(expected)
        assert set(load.statuses) == {200}
        assert server.pids[name] == pid


@pytest.mark.slow
def test_an_engine_that_hangs_is_killed_and_its_requests_are_answered(
    start_processes: StartServer, shipped_bundle: Path, images: Images
) -> None:
    with whole(start_processes, shipped_bundle) as server:
        expected = answers_of(server, images)
        before = server.pids["eenet-engine-0"]
        with Load(server, images) as load:
            load.wait_for(50)
            os.kill(before, signal.SIGSTOP)
            until(lambda: restarted(server, "eenet-engine-0", before), 40)
            load.wait_for(50)
        load.assert_right(expected)
        assert set(load.statuses) <= {200, 500} and load.statuses[500] <= 1


def test_two_requests_that_kill_engines_fail_and_are_never_tried_again(
    start_processes: StartServer, shipped_bundle: Path, images: Images
) -> None:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (32, 32), (77, 77, 77)).save(file, "PNG")
    with whole(start_processes, shipped_bundle, entry=("-c", POISON)) as server:
        expected = answers_of(server, images)
        with Load(server, images) as load:
            load.wait_for(50)
            for _ in range(2):
                answer = httpx.post(
                    f"{server.client.base_url}/predict",
                    content=file.getvalue(),
                    headers={"content-type": "image/png"},
                    timeout=30,
                )
                assert answer.status_code == 500, answer.text
            load.wait_for(50)
            until(lambda: ready(server))
        load.assert_right(expected)
        assert set(load.statuses) <= {200, 500, 503}
        until(lambda: metric(server, 'eenet_process_restarts_total{role="engine"}') == 2)


@pytest.mark.slow
def test_without_an_engine_requests_are_refused_at_once_and_it_is_not_ready(
    start_processes: StartServer, shipped_bundle: Path, images: Images, tmp_path: Path
) -> None:
    with whole(start_processes, shipped_bundle, str(tmp_path), entry=("-c", STILLBORN)) as server:
        (tmp_path / "now").touch()
        for name in ("eenet-engine-0", "eenet-engine-1"):
            os.kill(server.pids[name], signal.SIGKILL)
        until(lambda: not ready(server))
        answer = server.client.post("/predict", content=images.files[0], headers=JPEG)
        assert answer.status_code == 503 and "retry-after" in answer.headers
        (tmp_path / "now").unlink()
        until(lambda: ready(server), 60)
        assert (
            server.client.post("/predict", content=images.files[0], headers=JPEG).status_code == 200
        )


@pytest.mark.slow
def test_a_thousand_connections_are_spread_over_the_front_ends(
    start_processes: StartServer, shipped_bundle: Path
) -> None:
    with whole(start_processes, shipped_bundle) as server:
        url = server.client.base_url
        open_ones = [socket.create_connection((url.host, url.port)) for _ in range(1000)]
        try:
            for each in open_ones:
                each.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            for each in open_ones:
                assert each.recv(12) == b"HTTP/1.1 200"
            held = [
                len(os.listdir(f"/proc/{server.pids[name]}/fd"))
                for name in ("eenet-front-e-0", "eenet-front-e-1")
            ]
            assert min(held) > 300
        finally:
            for each in open_ones:
                each.close()


def test_every_front_end_gives_the_same_answer(
    start_processes: StartServer, shipped_bundle: Path, images: Images
) -> None:
    with whole(start_processes, shipped_bundle) as server:
        # Each on a connection, and so a front-end, of its own.
        ask = partial(server.client.request, headers={"connection": "close"})
        for round in range(12):
            answer = ask("POST", "/predict", files={"file": images.files[0]}).json()
            label = {"request_id": answer["request_id"], "label": answer["class_id"]}
            found = ask("POST", "/feedback", json=label)
            assert found.status_code == 200, found.text
            assert ask("GET", "/budget").json()["models"][0]["samples"] == round + 1
            budget_ms = 1e5 + round
            ask("PUT", "/budget", json={"budget_ms": budget_ms})
            assert ask("GET", "/budget").json()["models"][0]["budget_ms"] == budget_ms
