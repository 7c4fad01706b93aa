"""Clients that offer HTTP/2 in plain text with their first request, whose body must be read."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import Server, StartServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> Iterator[Server]:
    with start_server() as running:
        yield running


@pytest.fixture
def url(server: Server) -> str:
    return f"{server.client.base_url}/predict"


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout


@pytest.fixture(scope="module")
def curl() -> str:
    program = shutil.which("curl")
    if program is None or "HTTP2" not in run(program, "--version"):
        pytest.skip("curl with HTTP/2 is not installed; `apt-get install curl`")
    return program


@pytest.mark.parametrize("size", [0, 300_000, 3_000_000])
def test_curl_keeps_to_http_1_and_is_answered(
    curl: str, url: str, images: Images, tmp_path: Path, size: int
) -> None:
    (tmp_path / "a.jpg").write_bytes(images.files[0] + bytes(size))
    said = run(
        *(curl, "-sS", "--http2", "-w", "\n%{http_version} %{response_code} %{num_connects}\n"),
        *("-H", "Content-Type: image/jpeg", "--data-binary", f"@{tmp_path / 'a.jpg'}"),
        *(url, url),
    )
    answers = said.splitlines()
    assert [json.loads(line)["num_exits"] for line in answers[::2]] == [3, 3]
    assert answers[1::2] == ["1.1 200 1", "1.1 200 0"], "the connection is used again"


def test_curl_without_its_type_is_answered(
    curl: str, url: str, images: Images, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(images.files[0])
    plain = run(curl, "-sS", "--http2", "--data-binary", f"@{tmp_path / 'a.jpg'}", url)
    named = run(curl, "-sS", "--http2", "-F", f"photo=@{tmp_path / 'a.jpg'}", url)
    assert json.loads(plain)["confidence"] == json.loads(named)["confidence"]


def test_curl_that_knows_http_2_is_refused(curl: str, url: str) -> None:
    done = subprocess.run(
        [curl, "-sS", "--http2-prior-knowledge", url], capture_output=True, timeout=20
    )
    assert done.returncode != 0


@pytest.mark.parametrize("size", [0, 300_000])
def test_javas_client_is_answered(url: str, images: Images, tmp_path: Path, size: int) -> None:
    java = shutil.which("java")
    if java is None or "jdk.compiler" not in run(java, "--list-modules"):
        pytest.skip("a JDK is not installed; `apt-get install default-jdk-headless`")
    (tmp_path / "a.jpg").write_bytes(images.files[0] + bytes(size))
    source = str(HERE / "clients/Post.java")
    said = run(java, source, url, "image/jpeg", str(tmp_path / "a.jpg")).splitlines()
    assert [line.split(" ", 2)[:2] for line in said] == [["HTTP_1_1", "200"]] * 3
    assert len({json.loads(line.split(" ", 2)[2])["label"] for line in said}) == 1
