import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, cast

import httpx
import pytest

from models.bundle import Precision


class Server(NamedTuple):
    process: subprocess.Popen[bytes]
    client: httpx.Client
    ready_after_s: float


@pytest.fixture(scope="session")
def start_server() -> Callable[..., AbstractContextManager[Server]]:
    """Makes servers of their own process, ready to be asked, on a free port."""

    @contextmanager
    def start(*options: str, entry: Sequence[str] = ("-m", "server.cli.main")) -> Iterator[Server]:
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

    return start


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
