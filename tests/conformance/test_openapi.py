"""Thousands of requests that are drawn from the server's own OpenAPI document."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.conftest import MODES, OWN, URL
from tests.conformance.openapi import compare
from tests.e2e.conftest import running_server

MOST_EXAMPLES, FEW_EXAMPLES = 40, 4  # of each operation
REPOSITORY = "repository"  # loads and unloads take long, and leave no model to the others


@pytest.mark.e2e
@pytest.mark.timeout(240)
@pytest.mark.skipif(URL != OWN, reason="it changes budgets, and needs a server of its own")
@pytest.mark.parametrize("mode", MODES)
def test_it_answers_as_its_document_says(mode: tuple[str, ...], tmp_path: Path) -> None:
    """No 5xx but a passed deadline, no status, media type or shape that is not described."""
    with running_server(*mode, "--log-level", "error") as server:
        url = str(server.client.base_url).rstrip("/")
        report = compare(url, tmp_path, MOST_EXAMPLES, len(mode), "--exclude-tag", REPOSITORY)
        last = compare(url, tmp_path, FEW_EXAMPLES, len(mode), "--include-tag", REPOSITORY)
        assert server.process.poll() is None and server.client.get("/livez").status_code == 200
    assert report.passed, report.text
    assert last.passed, last.text
    print(f"\n{report.cases} and {last.cases} cases")
    assert report.cases > 2000
