"""Behind nginx: a sub-path, connections that stay open, a Unix socket."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.e2e.conftest import free_port

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import StartServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
CONFIG = (Path(__file__).parents[2] / "deploy/nginx.conf").read_text()
JPEG = {"content-type": "image/jpeg"}
AROUND = """
daemon off;
{user}
worker_processes 1;
pid {folder}/pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {config}
}}
"""


def replaced(config: str, old: str, new: str) -> str:
    assert config.count(f"{old};") == 1
    return config.replace(f"{old};", f"{new};")


@contextmanager
def nginx(folder: Path, upstream: str) -> Iterator[httpx.Client]:
    """Run the shipped configuration in front of a server."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed; `apt-get install nginx`")
    port = free_port()
    config = replaced(CONFIG, "server 127.0.0.1:8000", f"server {upstream}")
    config = replaced(config, "listen 80", f"listen 127.0.0.1:{port}")
    # Started by root, its workers would be of another user, who may not enter this folder.
    user = "" if os.geteuid() else "user root;"
    text = AROUND.format(folder=folder, config=config, user=user)
    (folder / "nginx.conf").write_text(text)
    process = subprocess.Popen(
        [program, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", "stderr"]
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        try:
            deadline_s = time.monotonic() + 10
            while time.monotonic() < deadline_s:
                try:
                    client.get("/")
                    break
                except httpx.TransportError:
                    time.sleep(0.02)
            yield client
        finally:
            process.terminate()
            process.wait(10)


def connections_to(port: int) -> int:
    """Connections to a port of this host, also those that have lately ended."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[2].endswith(f":{port:04X}") for line in lines)


@pytest.fixture(params=["tcp", "unix"])
def behind(
    request: pytest.FixtureRequest,
    start_server: StartServer,
    shipped_bundle: Path,
    tmp_path: Path,
) -> Iterator[tuple[httpx.Client, int]]:
    """A client of nginx, and the port of the server; 0 if it has none."""
    flags = ["--bundle", str(shipped_bundle), "--root-path", "/ml"]
    uds, admin = tmp_path / "s.sock", free_port()
    if request.param == "unix":
        flags += ["--uds", str(uds), "--forwarded-allow-ips", "*", "--admin-port", str(admin)]
        with start_server(*flags, ready_on=admin), nginx(tmp_path, f"unix:{uds}") as client:
            yield client, 0
    else:
        with start_server(*flags) as server:
            port = server.client.base_url.port
            assert port is not None
            with nginx(tmp_path, f"127.0.0.1:{port}") as client:
                yield client, port


def test_it_is_whole_under_a_path(behind: tuple[httpx.Client, int], images: Images) -> None:
    client, port = behind
    before = connections_to(port) if port else 0
    for file in images.files[:40]:
        answer = client.post("/ml/predict", content=file, headers=JPEG)
        assert answer.status_code == 200 and answer.json()["label"]
    if port:
        assert connections_to(port) - before <= 2, "connections stay open"
    assert client.get("/ml/readyz").json() == {"status": "ready"}
    assert client.head("/ml/readyz").status_code == 200
    for name in re.findall(r'(?:src|href)="([^"]*)"', client.get("/ml/docs").text):
        assert client.get(f"/ml/{name}").status_code == 200, "addresses are relative to the page"
    assert client.get("/ml/openapi.json").json()["servers"] == [{"url": "/ml"}]
    form = client.post("/ml/predict", files={"photo": images.files[0]}, data={"top_k": "1"})
    assert form.status_code == 200
    large = client.post("/ml/predict", content=images.files[0] + bytes(10**6), headers=JPEG)
    assert large.status_code == 200

    def chunks() -> Iterator[bytes]:
        yield images.files[0][:100]
        yield images.files[0][100:]

    assert client.post("/ml/predict", content=chunks(), headers=JPEG).status_code == 200


def test_refusals_reach_the_client(behind: tuple[httpx.Client, int]) -> None:
    client, _ = behind
    slash = client.post("/ml/predict/", content=b"x", headers={"host": "evil.example"})
    assert slash.status_code == 404 and "location" not in slash.headers
    assert slash.json()["detail"].startswith("there is no /predict/")
    assert client.post("/ml/predict", content=b"x").status_code == 415
    assert client.get("/ml/predict").status_code == 405


def test_its_own_pages_may_change_the_budget_and_those_of_others_not(
    behind: tuple[httpx.Client, int],
) -> None:
    client, port = behind
    if not port:
        pytest.skip("administration is on a port of its own")
    for origin, status in ((str(client.base_url).rstrip("/"), 200), ("https://evil.example", 403)):
        answer = client.put("/ml/budget", json={"budget_ms": 1e6}, headers={"origin": origin})
        assert answer.status_code == status
