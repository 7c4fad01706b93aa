"""The commands in docs/http.md run when pasted, and their responses have the fields shown there."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.conftest import Server

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = re.compile(r"(?ms)^```sh\n(.*?)\n```$(?:\n\n^```json\n(.*?)\n```$)?")
EXACT = ("model", "code", "detail", "sha256", "status")  # fields that no host and no load changes


class Example(NamedTuple):
    commands: str
    response: Any  # None: not shown


def examples() -> list[Example]:
    text = (ROOT / "docs" / "http.md").read_text()
    return [
        Example(commands, json.loads(shown.replace(", ...]", "]")) if shown else None)
        for commands, shown in EXAMPLE.findall(text)
    ]


@pytest.fixture(scope="module")
def server(start_server: Callable[..., AbstractContextManager[Server]]) -> Iterator[Server]:
    if shutil.which("curl") is None:
        pytest.skip("the examples need curl")
    with start_server() as running:
        yield running


@pytest.mark.e2e
@pytest.mark.parametrize("example", examples(), ids=lambda each: each.commands.split("\n")[-1])
def test_an_example_gives_the_response_shown(
    example: Example, server: Server, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{server.client.base_url.port}"
    commands = example.commands.replace("localhost:8000", address)
    commands = commands.replace("-o rows.npz", f"-o {tmp_path}/rows.npz")
    run = subprocess.run(
        ["bash", "-euc", commands.replace("curl ", "curl -sS ")],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    if example.response is None:
        assert '"code"' not in run.stdout
    else:
        response, _ = json.JSONDecoder().raw_decode(last_document(run.stdout))
        assert_alike(response, example.response)


def test_every_route_has_an_example() -> None:
    commands = "\n".join(example.commands for example in examples())
    routes = (
        "/predict", "/budget", "/frontier", "/audit", "/audit/rows", "/feedback",
        "/scheduler/reload", "/livez", "/readyz", "/metrics",
    )  # fmt: skip
    assert [route for route in routes if f"localhost:8000{route}" not in commands] == []


def last_document(printed: str) -> str:
    """The last of several JSON documents that stand one behind the other."""
    decoder, last = json.JSONDecoder(), 0
    end = 0
    while end < len(printed.rstrip()):
        last = end
        _, end = decoder.raw_decode(printed, end)
    return printed[last:]


def assert_alike(given: Any, shown: Any, field: str = "") -> None:
    """The same fields; values of the same kind, where both are known."""
    if isinstance(shown, dict):
        assert list(given) == list(shown), field
        for name in shown:
            assert_alike(given[name], shown[name], name)
    elif isinstance(shown, list) and isinstance(given, list):
        for one, other in zip(given, shown, strict=False):
            assert_alike(one, other, field)
    elif field in EXACT:
        assert given == shown
    elif given is not None and shown is not None:
        assert isinstance(given, str) == isinstance(shown, str), field
