import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import httpx
import pytest

from models.bundle import Precision

CLI = ("-m", "server.cli.main")


class Server(NamedTuple):
    process: subprocess.Popen[bytes]
    client: httpx.Client
    ready_after_s: float

    @property
    def pids(self) -> dict[str, int]:
        """The processes of the server, by name; the one that was started is `control`."""
        found, parents = {"control": self.process.pid}, [self.process.pid]
        while parents:
            for child in children_of(parents.pop()):
                name = Path(f"/proc/{child}/comm").read_text().strip()
                found[name] = child
                parents.append(child)
        return found


StartServer = Callable[..., AbstractContextManager[Server]]


def children_of(pid: int) -> list[int]:
    return [
        int(child)
        for tasks in Path(f"/proc/{pid}/task").glob("*/children")
        for child in tasks.read_text().split()
    ]


def pss_mib(pids: Iterable[int]) -> float:
    """Memory of processes, what they share counted once."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1]) for text in texts) / 1024  # type: ignore[index]


ONE_AND_SEVERAL = [
    pytest.param(0, id="one-process", marks=pytest.mark.slow),
    pytest.param(1, id="processes"),
]


@pytest.fixture(scope="session", params=ONE_AND_SEVERAL)
def start_server(request: pytest.FixtureRequest) -> StartServer:
    """Makes real servers, in one process and in several."""

    @contextmanager
    def start(*options: str, entry: Sequence[str] = CLI) -> Iterator[Server]:
        with running_server(*options, "--front-ends", str(request.param), entry=entry) as server:
            yield server

    return start


@pytest.fixture(scope="session")
def start_processes() -> StartServer:
    """Makes real servers in several processes."""
    return running_server


@contextmanager
def running_server(*options: str, entry: Sequence[str] = CLI) -> Iterator[Server]:
    """Run a server, ready to be asked, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, *entry, "serve", "--log-level", "warning"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("EENET_")}
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--port", str(port), *options], env=environ)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        try:
            while not is_ready(client):
                assert process.poll() is None, "the server ended at start"
                assert time.perf_counter() - started < 30, "the server does not get ready"
                time.sleep(0.02)
            yield Server(process, client, time.perf_counter() - started)
        finally:
            process.kill()
            process.wait()


def served_precision(client: httpx.Client, model: str) -> Precision:
    """The precision in which a model is served."""
    labels = re.findall(r"eenet_model_info{(.*?)}", client.get("/metrics").text)
    (mine,) = (each for each in labels if f'model="{model}"' in each)
    found = re.search(r'precision="(\w+)"', mine)
    assert found is not None
    return cast("Precision", found[1])


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
