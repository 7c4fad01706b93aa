"""The commands in the pages on HTTP run when pasted; their responses have the fields shown."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.documents import Example, assert_as_shown, examples, run_requests
from tests.e2e.conftest import Server

PAGES = "docs/http.md", "docs/protocols.md", "docs/migrating.md"
EXAMPLES = [example for page in PAGES for example in examples(page)]


@pytest.fixture(scope="module")
def server(start_server: Callable[..., AbstractContextManager[Server]]) -> Iterator[Server]:
    if shutil.which("curl") is None:
        pytest.skip("the examples need curl")
    with start_server() as running:
        yield running


@pytest.mark.e2e
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: each.commands.split("\n")[-1])
@pytest.mark.slow
def test_an_example_gives_the_response_shown(
    example: Example, server: Server, tmp_path: Path
) -> None:
    port = server.client.base_url.port
    assert port is not None
    assert_as_shown(run_requests(example, port, tmp_path), example)


def test_every_route_has_an_example() -> None:
    commands = "\n".join(example.commands for example in EXAMPLES)
    routes = (
        "/predict", "/predict/stream", "/budget", "/frontier", "/audit", "/audit/rows", "/feedback",
        "/scheduler/reload", "/livez", "/readyz", "/metrics", "/models", "/classify",
        "/v1/models", "/v2/models",
    )  # fmt: skip
    assert [route for route in routes if f"localhost:8000{route}" not in commands] == []
