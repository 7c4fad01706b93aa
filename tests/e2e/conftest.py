import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

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
    def start(*options: str, **more: Any) -> Iterator[Server]:
        with running_server(*options, "--front-ends", str(request.param), **more) as server:
            yield server

    return start


@pytest.fixture(scope="session")
def start_processes() -> StartServer:
    """Makes real servers in several processes."""
    return running_server


@contextmanager
def running_server(
    *options: str,
    entry: Sequence[str] = CLI,
    trust: ssl.SSLContext | None = None,
    ready_on: int | None = None,
    ready_within_s: float = 30,
    **process_options: Any,
) -> Iterator[Server]:
    """Run a server, ready to be asked, on a free port.

    Args:
        options: Of `eenet serve`.
        entry: What Python runs.
        trust: Certificates to trust; the server speaks TLS then.
        ready_on: Port that tells whether it is ready, and that the client asks; by default --port.
        ready_within_s: Time after which it has failed.
        process_options: Of subprocess.Popen.
    """
    port = free_port()
    scheme = "http" if trust is None else "https"
    command = [sys.executable, *entry, "serve", "--log-level", "warning"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("EENET_")}
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--port", str(port), *options], env=environ, **process_options
    )
    # Without TLS no certificates are read, which would take 30 ms of every client.
    base_url = f"{scheme}://127.0.0.1:{ready_on or port}"
    with httpx.Client(base_url=base_url, timeout=20, verify=trust or False) as client:
        try:
            while not is_ready(client):
                assert process.poll() is None, "the server ended at start"
                assert time.perf_counter() - started < ready_within_s, (
                    "the server does not get ready"
                )
                time.sleep(0.02)
            yield Server(process, client, time.perf_counter() - started)
        finally:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
