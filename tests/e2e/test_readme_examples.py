"""The README's requests run when pasted, and give the labels that it shows."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.documents import EXACT, assert_as_shown, examples, run_requests
from tests.e2e.conftest import Server

SAME_EVERYWHERE = EXACT | {"label", "class_id", "num_exits"}


@pytest.mark.e2e
def test_the_requests_give_the_responses_shown(
    start_server: Callable[..., AbstractContextManager[Server]], tmp_path: Path
) -> None:
    requests = [each for each in examples("README.md") if each.commands.startswith("curl ")]
    assert sum(request.response is not None for request in requests) >= 2
    if shutil.which("curl") is None:
        pytest.skip("the examples need curl")
    with start_server() as server:  # in the order of the page: a new budget would change exits
        port = server.client.base_url.port
        assert port is not None
        for request in requests:
            assert_as_shown(run_requests(request, port, tmp_path), request, SAME_EVERYWHERE)
