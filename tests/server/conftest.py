from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.settings import Settings


@pytest.fixture(scope="module")
def client(shipped_bundle: Path) -> Iterator[TestClient]:
    """A client of an app that serves the shipped bundle."""
    with TestClient(create_app(Settings(bundle=(shipped_bundle,), window=100))) as client:
        yield client
