"""What needs a server of its own: it ends, or what it was given changes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import write_costs
from models.stage_costs import StageCosts
from server.settings import SHIPPED_BUNDLES
from tests.conformance.conftest import MODES, OWN, SHORT, URL
from tests.conformance.image_checks import real_images
from tests.conformance.load_checks import TO_THE_END, figures_of, metric, under_load, until
from tests.conformance.target import JPEG, ask, post, target_of
from tests.e2e.conftest import CLI, running_server

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(URL != OWN, reason="it needs a server of its own"),
    pytest.mark.parametrize("mode", MODES),
]
IN_FLIGHT = 200
IMAGE_BUNDLE = SHIPPED_BUNDLES[0]
# A server whose standard error is a full disk.
FULL_LOG = """
import os, sys
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
from server.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_with_requests_in_flight(
    mode: tuple[str, ...], number: signal.Signals, tmp_path: Path
) -> None:
    """Each of 200 requests in flight is answered, and the server ends in 10 s."""
    costs = write_costs(StageCosts((1,), np.full((3, 1), 10.0)), tmp_path)
    slow = ("--backend", "replay", "--replay-costs", str(costs), "--bundle", str(IMAGE_BUNDLE))
    file = real_images()[0]
    with (
        running_server(*slow, *mode, *SHORT) as server,
        ThreadPoolExecutor(IN_FLIGHT) as pool,
    ):
        url = str(server.client.base_url)
        target = target_of(url, server.process.pid, f"/predict{TO_THE_END}")
        answers = [pool.submit(post, target, file, JPEG) for _ in range(IN_FLIGHT)]
        until(
            lambda: (
                metric(target, "eenet_inflight_samples") + sum(a.done() for a in answers)
                >= IN_FLIGHT
            )
        )
        in_flight = sum(not answer.done() for answer in answers)
        server.process.send_signal(number)
        seen = Counter(answer.result(60) for answer in answers)
        status = server.process.wait(10)
    print(f"\nsent {IN_FLIGHT}, {in_flight} in flight at the signal, status {status}; {dict(seen)}")
    assert in_flight > IN_FLIGHT / 4 and set(seen) <= {"200", "429", "503"}
    assert status == 0 if number == signal.SIGTERM else status in (0, 130)


def test_a_bundle_that_is_corrupted_while_it_is_served(
    mode: tuple[str, ...], tmp_path: Path
) -> None:
    """Reload refuses damaged and foreign files, and every answer stays right meanwhile."""
    folder = tmp_path / "bundle"
    shutil.copytree(IMAGE_BUNDLE, folder)
    schedulers = sorted(folder.rglob("scheduler.npz"))
    with running_server("--bundle", str(folder), *mode, *SHORT) as server:
        target = target_of(str(server.client.base_url), server.process.pid)
        reload = lambda: ask(target, "POST", "/scheduler/reload")  # noqa: E731
        with under_load(target) as load:
            load.wait_for(20)
            for path in schedulers:
                path.write_bytes(path.read_bytes()[:100] + b"damaged")
            assert reload().status == "422"
            (folder / "bundle.json").write_bytes(b"{")
            assert reload().status == "422"
            shutil.rmtree(folder)
            assert reload().status == "422"
            load.wait_for(20)
            shutil.copytree(IMAGE_BUNDLE, folder)
            assert reload().status == "200"
            load.wait_for(20)
        print(f"\n{figures_of(load, {})}")


def test_a_bundle_that_is_replaced_by_another(mode: tuple[str, ...], tmp_path: Path) -> None:
    """A folder that holds another network is refused at reload; the old one goes on."""
    folder = tmp_path / "bundle"
    shutil.copytree(IMAGE_BUNDLE, folder)
    with running_server("--bundle", str(folder), *mode, *SHORT) as server:
        target = target_of(str(server.client.base_url), server.process.pid)
        with under_load(target) as load:
            load.wait_for(20)
            shutil.rmtree(folder)
            shutil.copytree(SHIPPED_BUNDLES[1], folder)
            assert ask(target, "POST", "/scheduler/reload").status == "422"
            load.wait_for(20)
        print(f"\n{figures_of(load, {})}")


def test_a_full_disk(mode: tuple[str, ...]) -> None:
    """A server whose log is on a full disk goes on answering, also what it would log."""
    with running_server(*mode, *SHORT, entry=("-c", FULL_LOG)) as server:
        target = target_of(str(server.client.base_url), server.process.pid)
        with under_load(target) as load:
            load.wait_for(20)
            for _ in range(20):
                with target.connect() as connection:
                    connection.sendall(b"nonsense\r\n\r\n")  # a warning each
            load.wait_for(20)
        print(f"\n{figures_of(load, {})}")


def test_a_bundle_is_verified_before_it_is_served(mode: tuple[str, ...], tmp_path: Path) -> None:
    """A server does not start with a damaged bundle; it says which file, and ends with status 2."""
    folder = tmp_path / "bundle"
    shutil.copytree(IMAGE_BUNDLE, folder)
    damaged = sorted(folder.rglob("*.onnx"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    command = [sys.executable, *CLI, "serve", "--port", "0", "--bundle", str(folder), *mode]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("EENET_")}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "is damaged" in done.stderr and damaged.name in done.stderr
