"""Schemathesis against a server: does it answer as its OpenAPI document says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
)


class Report(NamedTuple):
    cases: int
    passed: bool
    text: str


def compare(url: str, folder: Path, most_examples: int, seed: int, *options: str) -> Report:
    """Send valid and invalid requests to every operation that a document describes.

    Args:
        url: The server's.
        folder: For what Schemathesis leaves behind.
        most_examples: Most drawn requests of an operation; fixed ones come beside them.
        seed: Of the draws.
        options: Further ones of `st run`.
    """
    command = [
        *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
        *("--config-file", str(HERE / "schemathesis.toml"), "run", f"{url}/openapi.json"),
        *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", str(most_examples), "--seed", str(seed), "--continue-on-failure"),
        *("--suppress-health-check", "all", "--request-timeout", "20", "--warnings", "off"),
        *options,
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    cases = re.search(r"(\d+) generated", done.stdout)
    text = done.stdout + done.stderr
    return Report(int(cases[1]) if cases else 0, done.returncode == 0, text)
