"""Servers for the checks: the one at EENET_CONFORMANCE_URL, or our own in both process modes.

EENET_CONFORMANCE_PID is the former's first process, if its memory is to be watched. Without an URL
nothing here is collected: the checks load a machine for minutes, which would disturb other tests.
`make conformance` sets it to `own`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conformance.target import Target, target_of
from tests.e2e.conftest import running_server

# Taken out of the environment, for a server's settings would not know them.
URL = os.environ.pop("EENET_CONFORMANCE_URL", "")
PID = os.environ.pop("EENET_CONFORMANCE_PID", "")
OWN = "own"
collect_ignore = [] if URL else ["test_checks.py", "test_own_server.py"]

ONE, SEVERAL = ("--front-ends", "0"), ("--front-ends", "2", "--engines", "2")
SHORT = ["--first-byte-s", "4", "--head-s", "3", "--body-s", "4", "--keep-alive-s", "10"]
MODES = [pytest.param(ONE, id="one-process"), pytest.param(SEVERAL, id="processes")]
GIVEN = [pytest.param((), id="given")]


@pytest.fixture(scope="session", params=MODES if URL == OWN else GIVEN)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """A server with short time-outs, for all checks that leave it whole."""
    if URL != OWN:
        yield target_of(URL, int(PID) if PID else None)
        return
    with running_server(*request.param, *SHORT) as server:
        yield target_of(str(server.client.base_url), server.process.pid)


@pytest.fixture
def has_processes(target: Target, request: pytest.FixtureRequest) -> bool:
    """Whether the server consists of several processes, and we may end them."""
    return target.pid is not None and "one-process" not in request.node.callspec.id
