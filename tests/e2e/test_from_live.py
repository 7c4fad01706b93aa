"""A server is refitted to what it saw, while it serves."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from models.bundle import load_bundle
from scheduler.fitted import FILES
from server.cli.main import main
from tests.bundles import recorded_of, variant_of

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import Server

JPEG = {"content-type": "image/jpeg"}

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


class Traffic:
    """Somebody who goes on asking; `statuses` are what came."""

    def __init__(self, client: Any, files: list[bytes]) -> None:
        self.statuses: list[int] = []
        self._client, self._files = client, files
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *given: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.is_set():
            file = self._files[len(self.statuses) % len(self._files)]
            answer = self._client.post("/predict", content=file, headers=JPEG)
            self.statuses.append(answer.status_code)


@pytest.mark.slow
def test_it_goes_on_with_what_was_fitted_to_its_own_samples(
    shipped_bundle: Path,
    tmp_path: Path,
    images: Images,
    start_server: Callable[..., AbstractContextManager[Server]],
    fitting_quickly: Callable[[], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = Path(shutil.copytree(shipped_bundle, tmp_path / "bundle"))
    flags = ("--precision", variant_of(bundle).precision, "--audit-share", "1", "--budget-ms", "50")
    with start_server("--bundle", str(bundle), *flags) as server:
        client = server.client

        def audit() -> dict[str, Any]:
            return client.get("/audit").json()["models"][0]

        def answers(files: list[bytes]) -> list[dict[str, Any]]:
            return [client.post("/predict", content=file, headers=JPEG).json() for file in files]

        told = {}
        for _ in range(6):
            for answer, label in zip(answers(images.files), images.labels, strict=True):
                told[answer["request_id"]] = label
            if audit()["samples"] >= 600:
                break
        for request_id, label in list(told.items())[-150:]:
            taken = client.post("/feedback", json={"request_id": request_id, "label": label})
            assert taken.status_code == 200, taken.text
        before = audit()
        assert before["policy"] == "stopping" and before["samples"] >= 600

        url = str(client.base_url)
        with Traffic(client, images.files) as traffic, fitting_quickly():
            assert main(["fit", str(bundle), "--from-live", url, "--policy", "entropy"]) == 0
        assert set(traffic.statuses) == {200}
        assert "now uses it" in capsys.readouterr().out

        assert audit()["policy"] == "entropy" and audit()["samples"] < before["samples"]
        scheduler = hashlib.sha256(
            (variant_of(bundle).scheduler() / FILES[1]).read_bytes()
        ).hexdigest()
        again = client.post("/scheduler/reload").json()["models"][0]
        assert again["sha256"] == scheduler
        shown = [answer["label"] for answer in answers(images.files[:100])]
        classes = load_bundle(bundle).manifest.classes
        right = np.mean([classes[y] == s for y, s in zip(images.labels, shown, strict=False)])
        assert right > 0.8
        assert client.get("/budget").json()["models"][0]["policy"] == "entropy"

    calibration = recorded_of(bundle).calibration
    assert len(calibration.labels) >= 600
    assert calibration.correct.mean(0)[-1] == pytest.approx(0.9, abs=0.06)
