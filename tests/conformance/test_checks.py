"""Every check of a running server, against ours or the one that is given."""

from __future__ import annotations

import pytest

from tests.conformance.checks import Check, perform
from tests.conformance.suite import CHECKS
from tests.conformance.target import Target

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_it_holds(check: Check, target: Target, has_processes: bool) -> None:
    if check.needs_pid and target.pid is None:
        pytest.skip("the server's pid is not known")
    if check.processes and not has_processes:
        pytest.skip("it is about a server of several processes")
    figures = perform(check, target)
    print(f"\n{check.name}: {check.proves}\n    {figures}")
    assert figures.wrong == 0
