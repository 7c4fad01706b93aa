from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import StartServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
REACHES_ALL_S = 0.05
# Else some front-ends would never be asked.
EACH_ON_A_NEW_CONNECTION = {"content-type": "image/jpeg", "connection": "close"}
FIRST_EXIT, LAST_EXIT = 0, 2


def test_a_new_budget_holds_at_every_engine_within_50_ms(
    start_processes: StartServer, shipped_bundle: Path, images: Images
) -> None:
    layout = ("--front-ends", "2", "--engines", "2", "--engine-workers", "1")
    with (
        start_processes("--bundle", str(shipped_bundle), *layout) as server,
        ThreadPoolExecutor(16) as clients,
    ):

        def exit_of(file: bytes) -> int:
            answer = server.client.post("/predict", content=file, headers=EACH_ON_A_NEW_CONNECTION)
            return int(answer.json()["exit"])

        for budget_ms, exit in [(None, LAST_EXIT), (1e-3, FIRST_EXIT)] * 3:
            answer = server.client.put(
                "/budget", json={"budget_ms": budget_ms, "max_disagreement": 0}
            )
            assert answer.status_code == 200, answer.text
            time.sleep(REACHES_ALL_S)
            assert set(clients.map(exit_of, images.files[:32])) == {exit}
