"""The container's health check asks where the server listens, and no proxy."""

import http.server
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server import health
from server.health import Address, address_of, is_ready

SERVE = ["python", "/app/.venv/bin/eenet", "serve"]


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ([], {}, Address("127.0.0.1", 8000, None, False)),
        ([], {"EENET_HOST": "0.0.0.0", "EENET_PORT": "9"}, Address("127.0.0.1", 9, None, False)),
        (["--port", "7"], {"EENET_PORT": "9"}, Address("127.0.0.1", 7, None, False)),
        (["--port=7", "--host=[::]"], {}, Address("::1", 7, None, False)),
        (["--host", "10.1.2.3", "--window", "9"], {}, Address("10.1.2.3", 8000, None, False)),
        (["--uds", "s.sock"], {}, Address("127.0.0.1", 8000, "ROOT/s.sock", False)),
        ([], {"EENET_UDS": "/run/s"}, Address("127.0.0.1", 8000, "/run/s", False)),
        (["--ssl-certfile", "a.pem"], {}, Address("127.0.0.1", 8000, None, True)),
        (["--config", "eenet.toml"], {}, Address("::1", 6, None, False)),
        (["--config", "eenet.toml"], {"EENET_PORT": "9"}, Address("::1", 9, None, False)),
    ],
)
def test_it_reads_what_the_server_was_started_with(
    tmp_path: Path, flags: list[str], environ: dict[str, str], expected: Address
) -> None:
    (tmp_path / "eenet.toml").write_text('port = 6\nhost = "::"\nwindow = 99\n')
    uds = expected.uds and expected.uds.replace("ROOT", str(tmp_path))
    for before in ([], ["/sbin/docker-init", "--"]):
        found = address_of([*before, *SERVE, *flags], environ, tmp_path)
        assert found == expected._replace(uds=uds)


class Answering(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, *given: Any) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[http.server.HTTPServer]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def of(server: http.server.HTTPServer) -> Address:
    return Address("127.0.0.1", server.server_port, None, False)


def test_a_server_that_is_ready_and_one_that_is_gone(
    answering: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert is_ready(of(answering))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        assert not is_ready(Address("127.0.0.1", nobody.getsockname()[1], None, False))


def test_a_server_that_is_not_ready_or_does_not_answer(
    answering: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answering, "do_GET", lambda self: self.send_error(503))
    assert not is_ready(of(answering))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not is_ready(Address("127.0.0.1", silent.getsockname()[1], None, False), 0.05)


def test_a_server_on_a_unix_socket_and_one_with_tls(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-days", "2",
         "-keyout", tmp_path / "pem", "-out", tmp_path / "crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "crt", tmp_path / "pem")
    uds = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(uds)
        listening.listen()
        for is_tls in (False, True):

            def answer(is_tls: bool = is_tls) -> None:
                sock, _ = listening.accept()
                with context.wrap_socket(sock, server_side=True) if is_tls else sock as client:
                    assert client.recv(1000).startswith(b"GET /readyz ")
                    client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

            thread = threading.Thread(target=answer)
            thread.start()
            assert is_ready(Address("127.0.0.1", 1, uds, is_tls))
            thread.join()


def test_as_a_command_it_ends_with_a_status(
    tmp_path: Path, answering: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").symlink_to(tmp_path)
    words = [*SERVE, "--port", str(answering.server_port), ""]
    (tmp_path / "cmdline").write_bytes("\0".join(words).encode())
    monkeypatch.setattr(health, "SERVER", tmp_path)
    assert health.main() == 0
    (tmp_path / "cmdline").write_bytes(b"eenet\0serve\0--port\x001\0")
    assert health.main() == 1


def test_it_imports_the_standard_library_alone() -> None:
    code = "import sys, server.health; print({'numpy', 'pydantic', 'fastapi'} & set(sys.modules))"
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environ)
    assert done.stdout == b"set()\n"
