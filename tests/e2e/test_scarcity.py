"""Starts under low limits: the server works, or ends with one sentence."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import CLI

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import StartServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
JPEG = {"content-type": "image/jpeg"}


def limited(kind: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (most, most))


def last_words(bundle: Path, *flags: str, limit: Callable[[], None]) -> tuple[int, list[str]]:
    """Status and lines of a server that cannot start."""
    command = [sys.executable, *CLI, "serve", "--port", "0", "--bundle", str(bundle), *flags]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("EENET_")}
    ended = subprocess.run(
        [*command, "--log-level", "error"],
        capture_output=True, text=True, env=environ, preexec_fn=limit, timeout=60,
    )  # fmt: skip
    return ended.returncode, ended.stderr.splitlines()


@pytest.mark.parametrize("front_ends", [pytest.param("0", marks=pytest.mark.slow), "1"])
@pytest.mark.parametrize(
    ("kind", "most", "sentence"),
    [
        (resource.RLIMIT_NOFILE, 8, "only 8 files may be open at a time"),
        (resource.RLIMIT_NOFILE, 40, "raise `ulimit -n`"),
        (resource.RLIMIT_AS, 100 * 2**20, "may use 100 MiB of address space"),
    ],
)
def test_too_low_a_limit_is_one_sentence(
    shipped_bundle: Path, front_ends: str, kind: int, most: int, sentence: str
) -> None:
    status, lines = last_words(
        shipped_bundle, "--front-ends", front_ends, limit=limited(kind, most)
    )
    assert status == 2 and len(lines) == 1, lines
    assert lines[0].startswith("eenet: ") and sentence in lines[0]


def test_too_little_memory_for_the_networks_is_no_trace(shipped_bundle: Path) -> None:
    status, lines = last_words(
        shipped_bundle, "--front-ends", "0", limit=limited(resource.RLIMIT_AS, 320 * 2**20)
    )
    assert status in (2, 3)
    assert not any("Traceback" in line for line in lines), lines


def test_files_that_may_not_be_written_are_named(shipped_bundle: Path) -> None:
    status, lines = last_words(
        shipped_bundle, "--front-ends", "1", limit=limited(resource.RLIMIT_FSIZE, 0)
    )
    assert status == 3 and "raise `ulimit -f`" in lines[-1]
    assert not any("Traceback" in line for line in lines), lines


def test_it_serves_where_it_can_write_nothing(
    start_server: StartServer, shipped_bundle: Path, images: Images, tmp_path: Path
) -> None:
    """No folder for temporary files, none of its own, and a log on a full disk."""
    nowhere = str(tmp_path / "nowhere")
    with open("/dev/full", "wb") as full, pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
            patch.setenv(name, nowhere)
        with start_server("--bundle", str(shipped_bundle), stderr=full, stdout=full) as server:
            # Large and small, as a form and as JSON: none of them goes by way of a file.
            for body in (
                {"content": images.files[0], "headers": JPEG},
                {"content": images.files[0] + bytes(2**21), "headers": JPEG},
                {"files": {"file": images.files[0] + bytes(2**21)}},
            ):
                assert server.client.post("/predict", **body).status_code == 200  # type: ignore[arg-type]
            assert server.client.get("/metrics").status_code == 200
