"""Keys, the port for administration, TLS and other listeners, on the real server."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.conftest import free_port, is_ready

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import Server, StartServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
JPEG = {"content-type": "image/jpeg"}
LARGE = bytes(300_000)  # behind an image, where decoders stop: too large for the short path


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def write_keys(path: Path, *keys: str) -> str:
    lines = [f"sha256:{hashlib.sha256(key.encode()).hexdigest()} {key[:3]}\n" for key in keys]
    path.with_suffix(".new").write_text("".join(lines))
    os.replace(path.with_suffix(".new"), path)
    return str(path)


ANN, BOB, ROOT = (f"{name}-{'0123456789abcdef' * 2}" for name in ("ann", "bob", "root"))


class Guarded:
    """A server with keys, its log, and the files of its keys."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder, self.client = server, folder, server.client

    def status(self, method: str, path: str, key: str | None = None, **given: Any) -> int:
        headers = {**given.pop("headers", {}), **(bearer(key) if key else {})}
        return self.client.request(method, path, headers=headers, **given).status_code


@pytest.fixture(scope="module")
def guarded(
    start_server: StartServer, shipped_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("keys")
    flags = ("--api-keys", write_keys(folder / "api", ANN, BOB))
    flags += ("--admin-keys", write_keys(folder / "admin", ROOT))
    with (
        (folder / "log").open("wb") as log,
        start_server(
            "--bundle", str(shipped_bundle), *flags, "--log-level", "debug", stderr=log
        ) as server,
    ):
        yield Guarded(server, folder)


def bodies(images: Images) -> list[dict[str, Any]]:
    file = images.files[0]
    return [
        {"content": file, "headers": JPEG},
        {"content": file + LARGE, "headers": JPEG},
        {"files": {"file": file}},
        {"json": {"text": "no text model is loaded"}},
        {"json": {"texts": ["no text model is loaded"] * 3}},
        {"content": b"{", "headers": {"content-type": "application/json"}},
    ]


def test_predictions_in_every_shape_need_a_key(guarded: Guarded, images: Images) -> None:
    for body, expected in zip(bodies(images), (200, 200, 200, 404, 404, 400), strict=True):
        statuses = [
            guarded.status("POST", "/predict", key, **body) for key in (None, "nope", ROOT, ANN)
        ]
        assert statuses == [401, 401, 403, expected]
    refused = guarded.client.post("/predict", content=images.files[0], headers=JPEG)
    assert refused.headers["www-authenticate"] == 'Bearer realm="eenet"'
    assert refused.headers["x-request-id"] == refused.json()["request_id"]
    assert refused.json()["code"] == "unauthorized"


def test_administration_needs_a_key_of_its_own_and_probes_need_none(guarded: Guarded) -> None:
    reads = ("/budget", "/frontier", "/audit", "/audit/rows", "/metrics")
    for method, path in [*(("GET", path) for path in reads), ("POST", "/scheduler/reload")]:
        statuses = [guarded.status(method, path, key) for key in (None, BOB, ROOT)]
        assert statuses == [401, 403, 200], path
    for path in ("/livez", "/readyz", "/health", "/docs", "/openapi.json"):
        assert guarded.status("GET", path) == 200
    assert guarded.status("GET", "/nope") == 401
    assert guarded.status("GET", "/nope", ROOT) == 404
    text = guarded.client.get("/metrics", headers=bearer(ROOT)).text
    for reason in ("unauthorized", "forbidden"):
        (line,) = (
            each for each in text.splitlines() if f'rejected_total{{reason="{reason}"' in each
        )
        assert float(line.split()[-1]) > 0
        assert f"refused, {reason}: " in (guarded.folder / "log").read_text()


def test_feedback_belongs_to_the_key_that_asked(guarded: Guarded, images: Images) -> None:
    for name, file in (("short", images.files[0]), ("long", images.files[0] + LARGE)):
        headers = {**JPEG, "x-request-id": name}
        answer = guarded.client.post("/predict", content=file, headers=headers | bearer(ANN))
        label = {"request_id": name, "label": answer.json()["label"]}
        assert guarded.status("POST", "/feedback", BOB, json=label) == 404
        # Bob may use the same id, for an answer of his own.
        assert guarded.status("POST", "/predict", BOB, content=file, headers=headers) == 200
        for key in (ANN, BOB):
            assert guarded.status("POST", "/feedback", key, json=label) == 200
        assert guarded.status("POST", "/feedback", ROOT, json=label) == 403


def test_pages_of_other_sites_are_refused(guarded: Guarded) -> None:
    evil = {"origin": "https://evil.example"}
    for method, path, key, status in [
        ("PUT", "/budget", ROOT, 403),
        ("POST", "/scheduler/reload", ROOT, 403),
        ("POST", "/feedback", ANN, 403),
        ("GET", "/budget", ROOT, 200),
    ]:
        assert guarded.status(method, path, key, headers=evil) == status
    own = {"origin": str(guarded.client.base_url)}
    change = {"budget_ms": 1e6}
    assert guarded.status("PUT", "/budget", ROOT, headers=own, json=change) == 200


def test_keys_are_read_again_and_no_key_is_ever_logged(guarded: Guarded, images: Images) -> None:
    new = "new-" + "fedcba9876543210" * 2
    predict = {"content": images.files[0], "headers": JPEG}
    write_keys(guarded.folder / "api", ANN, new)
    while guarded.status("POST", "/predict", new, **predict) == 401:
        pass
    assert guarded.status("POST", "/predict", BOB, **predict) == 401
    (guarded.folder / "api").write_text(f"{new}\n")
    log = guarded.folder / "log"
    while "stay in force" not in log.read_text():
        assert guarded.status("POST", "/predict", new, **predict) == 200
    for key in (ANN, BOB, ROOT, new):
        assert key not in log.read_text()
        assert hashlib.sha256(key.encode()).hexdigest() not in log.read_text()


@pytest.mark.parametrize("stopped", [False, True])
def test_administration_has_a_port_of_its_own(
    start_processes: StartServer, shipped_bundle: Path, stopped: bool
) -> None:
    port = free_port()
    flags = ("--front-ends", "1" if stopped else "0", "--admin-port", str(port))
    with start_processes("--bundle", str(shipped_bundle), *flags) as server:
        for path in ("/budget", "/metrics", "/audit", "/nope"):
            assert server.client.get(path).status_code == 404
        assert "not on this port" in server.client.get("/metrics").json()["detail"]
        if stopped:  # as under an overload that leaves it no time
            os.kill(server.pids["eenet-front-e-0"], signal.SIGSTOP)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as admin:
            for path in ("/livez", "/readyz", "/budget", "/metrics", "/audit"):
                answer = admin.get(path)
                assert answer.status_code == 200 and answer.headers["x-request-id"]
            assert admin.put("/budget", json={"budget_ms": 3}).status_code == 200
            assert admin.get("/budget").json()["models"][0]["budget_ms"] == 3
            assert admin.post("/predict").status_code == 404
            assert 'route="/budget",status="200"} 3.0' in admin.get("/metrics").text
            with socket.create_connection(("127.0.0.1", port), timeout=20) as stranger:
                stranger.sendall(b"nonsense\r\n\r\n")
                assert stranger.recv(4096).startswith(b"HTTP/1.1 400 ")
            assert 'rejected_total{reason="malformed"} 1.0' in admin.get("/metrics").text


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, signed by itself, and its encrypted key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-passout", "pass:open sesame",
         "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=eenet",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def test_it_speaks_tls_on_all_its_ports(
    start_server: StartServer,
    shipped_bundle: Path,
    images: Images,
    certificate: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    cert, key = certificate
    trust, port = ssl.create_default_context(cafile=cert), free_port()
    flags = ("--ssl-certfile", str(cert), "--ssl-keyfile", str(key), "--admin-port", str(port))
    flags += ("--ssl-keyfile-password", "open sesame", "--log-level", "debug")
    with (
        (tmp_path / "log").open("wb") as log,
        start_server("--bundle", str(shipped_bundle), *flags, trust=trust, stderr=log) as server,
    ):
        for body in bodies(images)[:3]:
            answer = server.client.post("/predict", **body)
            assert answer.status_code == 200 and answer.json()["label"]
        admin = httpx.get(f"https://127.0.0.1:{port}/metrics", verify=trust)
        assert admin.status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(str(server.client.base_url.copy_with(scheme="http")))
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{server.client.base_url}/livez")
    assert "open sesame" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("handed_over", [False, True])
def test_it_listens_on_a_unix_socket(
    start_server: StartServer,
    shipped_bundle: Path,
    images: Images,
    tmp_path: Path,
    handed_over: bool,
) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as ours:
        if handed_over:
            ours.bind(str(path))
        flags = ("--fd", str(ours.fileno())) if handed_over else ("--uds", str(path))
        port = free_port()
        with start_server(
            *("--bundle", str(shipped_bundle), *flags, "--admin-port", str(port)),
            pass_fds=(ours.fileno(),),
            ready_on=port,
        ) as server:
            over = httpx.HTTPTransport(uds=str(path))
            with httpx.Client(base_url="http://x", transport=over) as client:
                answer = client.post("/predict", content=images.files[0], headers=JPEG)
                assert answer.status_code == 200 and is_ready(client)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == 0
        assert path.exists() == handed_over


def test_behind_a_proxy_it_knows_its_path(
    start_server: StartServer, shipped_bundle: Path, images: Images
) -> None:
    flags = ("--root-path", "/ml", "--cors-origin", "https://a.example")
    with start_server("--bundle", str(shipped_bundle), *flags) as server:
        for prefix in ("", "/ml"):
            assert server.client.get(f"{prefix}/readyz").status_code == 200
            answer = server.client.post(f"{prefix}/predict", content=images.files[0], headers=JPEG)
            assert answer.status_code == 200
            for page in ("docs", "docs/assets/swagger-ui-bundle.js", "docs/assets/start.js"):
                assert server.client.get(f"{prefix}/{page}").status_code == 200
            document = json.loads(server.client.get(f"{prefix}/openapi.json").text)
            assert document["servers"] == [{"url": "/ml"}]
        ask = {"origin": "https://a.example", "access-control-request-method": "POST"}
        told = server.client.options("/predict", headers=ask)
        assert told.status_code == 204
        assert told.headers["access-control-allow-origin"] == "https://a.example"
        origin = JPEG | {"origin": "https://a.example"}
        answer = server.client.post("/predict", content=images.files[0], headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert answer.status_code == 200
