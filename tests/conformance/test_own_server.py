"""What needs a server of its own: it ends, or what it was given changes."""

from __future__ import annotations

import shutil
import signal
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
from tests.e2e.conftest import running_server

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


def test_sigterm_with_requests_in_flight(mode: tuple[str, ...], tmp_path: Path) -> None:
    """Each of 200 requests in flight is answered, and the server ends in 10 s."""
    costs = write_costs(StageCosts((1,), np.full((3, 1), 10.0)), tmp_path)
    slow = ("--backend", "replay", "--replay-costs", str(costs), "--bundle", str(IMAGE_BUNDLE))
    patient = ("--max-queue-s", "60")
    file = real_images()[0]
    with (
        running_server(*slow, *patient, *mode, *SHORT) as server,
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
        server.process.send_signal(signal.SIGTERM)
        seen = Counter(answer.result(60) for answer in answers)
        status = server.process.wait(10)
    print(f"\nsent {IN_FLIGHT}, {in_flight} in flight at the signal, status {status}; {dict(seen)}")
    assert in_flight > IN_FLIGHT / 4 and set(seen) == {"200"}
    assert status == 0


def test_a_bundle_that_changes_while_it_is_served(mode: tuple[str, ...], tmp_path: Path) -> None:
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
            shutil.rmtree(folder)
            shutil.copytree(SHIPPED_BUNDLES[1], folder)  # of another network
            assert reload().status == "422"
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
