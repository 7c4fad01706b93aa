"""Several front-ends on one address: both families of IP, a Unix socket, one that is left over."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.e2e.conftest import free_port, is_ready
from tests.server.test_listening import has_ipv6

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Images
    from tests.e2e.conftest import StartServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
JPEG = {"content-type": "image/jpeg"}


def test_a_unix_socket_of_several_front_ends_survives_a_kill(
    start_processes: StartServer, shipped_bundle: Path, images: Images, tmp_path: Path
) -> None:
    path, port = tmp_path / "s.sock", free_port()
    flags = ("--bundle", str(shipped_bundle), "--uds", str(path), "--front-ends", "2")
    umask = os.umask(0o007)
    try:
        for last in (False, True):
            with start_processes(*flags, "--admin-port", str(port), ready_on=port) as server:
                assert path.stat().st_mode & 0o777 == 0o770
                for file in images.files[:20]:  # each on a connection of its own
                    over = httpx.HTTPTransport(uds=str(path))
                    with httpx.Client(base_url="http://x", transport=over) as client:
                        assert is_ready(client)
                        answer = client.post("/predict", content=file, headers=JPEG)
                        assert answer.status_code == 200
                if last:
                    server.process.send_signal(signal.SIGTERM)
                    assert server.process.wait(20) == 0
                    assert not path.exists()
                else:
                    server.process.kill()
                    server.process.wait()
                    assert path.exists(), "a server that is killed leaves its file"
    finally:
        os.umask(umask)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("front_ends", ["0", "2"])
def test_both_families_of_addresses(
    start_processes: StartServer, shipped_bundle: Path, front_ends: str
) -> None:
    flags = ("--bundle", str(shipped_bundle), "--host", "[::]", "--front-ends", front_ends)
    with start_processes(*flags) as server:
        port = server.client.base_url.port
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port), timeout=10) as sock:
                sock.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
                assert sock.recv(15) == b"HTTP/1.1 200 OK"
