"""Runs a scenario of real processes in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[3]


class Ran(NamedTuple):
    """The value that the scenario returned, and what all its processes wrote."""

    value: Any
    output: str


def begin(name: str) -> subprocess.Popen[str]:
    """Start a scenario as the leader of a process group."""
    command = [sys.executable, "-X", "dev", "-W", "error"]
    return subprocess.Popen(
        [*command, str(Path(__file__).with_name("process_scenarios.py")), name],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(name: str) -> Ran:
    """Run a scenario to the end of all its processes: they share its standard output."""
    with begin(name) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    return Ran(json.loads(output.splitlines()[-1]), output)
