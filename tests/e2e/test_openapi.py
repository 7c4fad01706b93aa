"""The OpenAPI document against the running server, and a client that is generated from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.app import create_app
from server.settings import Settings
from tests.conformance.openapi import compare
from tests.e2e.conftest import StartServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]
CLIENTS = Path(__file__).parent / "clients"
PINS = CLIENTS / "openapi_python_client.txt"
# It wants another typer than training does.
ENVIRONMENT = ROOT / "build/openapi-python-client"
FEW = ("--phases", "examples,fuzzing", "--exclude-tag", "repository")
FEW_EXAMPLES = 3  # of each operation; `make conformance` sends thousands


def test_a_few_requests_are_answered_as_the_document_says(
    start_server: StartServer, tmp_path: Path
) -> None:
    with start_server("--log-level", "error") as server:
        url = str(server.client.base_url).rstrip("/")
        report = compare(url, tmp_path, FEW_EXAMPLES, 1, *FEW)
    assert report.passed, report.text
    assert report.cases > 60


def run(*command: str | Path, folder: Path) -> str:
    # Without the environment's folder of commands it would not find the formatter that it calls.
    environ = {**os.environ, "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*map(str, command)], cwd=folder, capture_output=True, text=True, env=environ, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def generator() -> Path:
    """The folder of commands of the generator's own environment, which is made once."""
    commands, installed = ENVIRONMENT / "bin", ENVIRONMENT / "installed.txt"
    if installed.exists() and installed.read_text() == PINS.read_text():
        return commands
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    pip = [str(commands / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    done = subprocess.run([*pip, "-r", str(PINS)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"openapi-python-client cannot be installed: {done.stderr[-300:]}")
    installed.write_text(PINS.read_text())
    return commands


def test_a_generated_client_has_good_names_and_types_and_works(
    generator: Path, start_server: StartServer, tmp_path: Path
) -> None:
    with start_server() as server:
        document = server.client.get("/openapi.json").content
        assert document == create_app(Settings()).state.document.content, "in both process modes"
        (tmp_path / "document.json").write_bytes(document)
        generate = [generator / "openapi-python-client", "generate", "--path", "document.json"]
        said = run(*generate, "--output-path", "eenet_generated", "--meta", "none", folder=tmp_path)
        missing = [line for line in said.splitlines() if line.startswith("WARNING")]
        # The only thing it knows nothing of is a range of media types, image/*.
        assert all("/predict" in line for line in missing) and len(missing) <= 2, said
        script = CLIENTS / "use_generated.py"
        (tmp_path / script.name).write_text(script.read_text())
        check = ["--follow-imports", "silent", "--strict", script.name]
        run(generator / "mypy", *check, folder=tmp_path)
        url = str(server.client.base_url).rstrip("/")
        answers = json.loads(run(generator / "python", script.name, url, folder=tmp_path))
    assert answers == {
        "label": "Business",
        "list": ["Prediction", "ItemError"],
        "problem": "unknown_model",
        "budget_ms": 2.5,
        "tensors": ["label"],
        "ready": "ready",
        "exits": 4,
    }
