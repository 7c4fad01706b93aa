"""Models are loaded, swapped and unloaded under load without a failed request or lost memory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.conftest import pss_mib

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import Server, StartServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
JPEG = {"content-type": "image/jpeg"}
OPTIONS = ("--precision", "float32", "--max-batch", "1")
CLIENTS = 3
CYCLES = 20
MOST_GROWTH_MIB = 12.0  # over all cycles after the first few; each loads some 10 MiB
# A process that loads version 13 dies.
UNLUCKY = """
import os, sys
import server.runner as runner
make = runner.ModelRunner.__init__
def unlucky(self, bundle, *given, **more):
    if bundle.manifest.version == "13":
        os._exit(9)
    make(self, bundle, *given, **more)
runner.ModelRunner.__init__ = unlucky
from server.cli.main import main
sys.exit(main())
"""
# An engine dies of version 14; the trial before does not.
UNLUCKY_ENGINE = """
import os, sys
import server.processes.engine_host as host
make = host.open_runner
def unlucky(source, *given):
    if source.version == "14":
        os._exit(9)
    return make(source, *given)
host.open_runner = unlucky
from server.cli.main import main
sys.exit(main())
"""


def put_version(root: Path, bundle: Path, name: str, version: str) -> None:
    """Put a copy of a bundle into a repository, its manifest last."""
    folder = root / name / version
    shutil.copytree(bundle, folder, ignore=lambda *_: ["bundle.json"])
    manifest = json.loads((bundle / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**manifest, "name": name}))


@pytest.fixture
def repository(tmp_path: Path, shipped_bundle: Path) -> Path:
    """Two models that read images, one of them in three versions."""
    for name, version in (("first", "1"), ("second", "1"), ("second", "2"), ("second", "3")):
        put_version(tmp_path, shipped_bundle, name, version)
    return tmp_path


class Traffic:
    """Clients that send images to models one after another, and what they were told."""

    def __init__(self, server: Server, images: Images, *models: str) -> None:
        self._url, self._files = str(server.client.base_url), images.files
        self._stop = threading.Event()
        self.told: Counter[tuple[str, int, str]] = Counter()  # model, status, version
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._send, args=(models[place % len(models)], place))
            for place in range(max(CLIENTS, len(models)))
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a request was never answered"

    def statuses(self, model: str) -> set[int]:
        return {status for name, status, _ in self.told if name == model}

    def versions(self, model: str) -> set[str]:
        return {version for name, _, version in self.told if name == model}

    def _send(self, model: str, place: int) -> None:
        with httpx.Client(base_url=self._url, timeout=30, verify=False) as client:
            while not self._stop.is_set():
                place = (place + 1) % len(self._files)
                answer = client.post(
                    "/predict", params={"model": model}, content=self._files[place], headers=JPEG
                )
                version = answer.json().get("version", "")
                with self._lock:
                    self.told[model, answer.status_code, version] += 1
                if answer.status_code == 404:
                    time.sleep(0.01)


def post(server: Server, path: str, body: Any = None) -> Any:
    answer = server.client.post(f"/v2/repository/{path}", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def only(*versions: str) -> dict[str, Any]:
    """The body of a load of these versions."""
    policy = {"version_policy": {"specific": {"versions": list(versions)}}}
    return {"parameters": {"config": json.dumps(policy)}}


def test_swaps_and_unloads_under_load_fail_no_request(
    start_server: StartServer, repository: Path, images: Images
) -> None:
    with start_server("--repository", str(repository), *OPTIONS) as server:
        with Traffic(server, images, "first", "second", "second@2") as traffic:
            for versions in (["2"], ["1", "3"], ["2", "3"], ["1"], ["3"]):
                post(server, "models/second/load", only(*versions))
            time.sleep(0.3)
        assert traffic.statuses("first") == {200}
        assert traffic.statuses("second") == {200}
        assert traffic.versions("second") == {"1", "2", "3"}
        assert traffic.statuses("second@2") == {200, 404}
        assert traffic.versions("second@2") == {"2", ""}
        with Traffic(server, images, "first", "second") as traffic:
            post(server, "models/second/unload")
            gone = server.client.post(
                "/predict?model=second", content=images.files[0], headers=JPEG
            )
            assert gone.status_code == 404
            post(server, "models/second/load")
            time.sleep(0.3)
        assert traffic.statuses("first") == {200}
        assert traffic.statuses("second") == {200, 404}
        assert traffic.versions("second") == {"3", ""}
        assert 'model="second",version="1"' not in server.client.get("/metrics").text


def test_memory_is_given_back(start_server: StartServer, repository: Path) -> None:
    with start_server("--repository", str(repository), *OPTIONS) as server:

        def cycle() -> None:
            post(server, "models/second/unload")
            post(server, "models/second/load")

        for _ in range(4):
            cycle()
        before = pss_mib(server.pids.values())
        for _ in range(CYCLES):
            cycle()
        grown = pss_mib(server.pids.values()) - before
        assert grown < MOST_GROWTH_MIB, f"{CYCLES} cycles took {grown:.1f} MiB"


@contextlib.contextmanager
def unlucky(start: StartServer, entry: str, repository: Path, *options: str) -> Iterator[Server]:
    given = ("--repository", str(repository), *OPTIONS, *options)
    with start(*given, entry=("-c", entry)) as server:
        yield server


@pytest.mark.parametrize(("entry", "version"), [(UNLUCKY, "13"), (UNLUCKY_ENGINE, "14")])
def test_a_model_that_kills_its_process_is_refused(
    start_processes: StartServer,
    repository: Path,
    shipped_bundle: Path,
    images: Images,
    entry: str,
    version: str,
) -> None:
    with unlucky(start_processes, entry, repository) as server:
        with Traffic(server, images, "first") as traffic:
            put_version(repository, shipped_bundle, "second", version)
            answer = server.client.post("/v2/repository/models/second/load", timeout=60)
            assert (answer.status_code, answer.json()["code"]) == (422, "load_refused")
            assert "has ended" in answer.json()["detail"]
            until(lambda: server.client.get("/readyz").status_code == 200)
        # Requests that an engine executes when it dies are lost; the trial keeps that from engines.
        assert traffic.statuses("first") <= ({200} if version == "13" else {200, 500, 503})
        answer = server.client.post("/predict?model=second", content=images.files[0], headers=JPEG)
        assert answer.json()["version"] == "3"
        entries = post(server, "index")
        (bad,) = (each for each in entries if each["version"] == version)
        assert bad["state"] == "UNAVAILABLE" and "has ended" in bad["reason"]
        shutil.rmtree(repository / "second" / version)
        post(server, "models/first/load")


def test_processes_that_start_again_serve_what_is_loaded_now(
    start_processes: StartServer, repository: Path, images: Images
) -> None:
    options = ("--front-ends", "1", "--engines", "1", "--bundle", str(repository / "first" / "1"))
    with start_processes("--repository", str(repository), *options, *OPTIONS) as server:
        post(server, "models/second/load", only("1"))
        for name in ("eenet-front-end", "eenet-engine"):
            (pid,) = (pid for each, pid in server.pids.items() if each.startswith(name[:12]))
            os.kill(pid, signal.SIGKILL)
            until(lambda: answers(server, images) == "1")
        post(server, "models/second/load")
        until(lambda: answers(server, images) == "3")


def answers(server: Server, images: Images) -> str | None:
    """The version that answers; None if none does."""
    try:
        answer = server.client.post("/predict?model=second", content=images.files[0], headers=JPEG)
    except httpx.TransportError:
        return None
    version: str | None = answer.json().get("version")
    return version


def until(holds: Callable[[], bool]) -> None:
    patience = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < patience, "it never came true"
        time.sleep(0.05)
