from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from models.preprocess import ImagePreprocessor, ModelInput
from server.app import create_app
from server.settings import Settings
from tests.models.image_files import encode, png_with, smooth, with_scans

if TYPE_CHECKING:
    from tests.conftest import Images

PNG, JPEG = {"content-type": "image/png"}, {"content-type": "image/jpeg"}
SLOW = png_with([], side=3000)  # 9 megapixels, above 100 ms by its header
ENDLESS = png_with([], side=7000)


@contextmanager
def serving(bundle: Path, **options: Any) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(bundle=(bundle,), **options))) as client:
        yield client


def test_a_slow_image_is_answered_by_the_helper(shipped_bundle: Path, images: Images) -> None:
    with serving(shipped_bundle, decode_timeout_s=60) as client:
        helper = client.app.state.front.decoders.helper
        assert client.post("/predict", content=images.files[0], headers=JPEG).status_code == 200
        assert helper._helper is None
        answer = client.post("/predict", content=SLOW, headers=PNG)
        assert answer.status_code == 200, answer.text
        assert helper._helper is not None
        process = helper._helper.process
    assert process.poll() is not None


def test_an_image_that_takes_too_long_is_a_422(shipped_bundle: Path, images: Images) -> None:
    with serving(shipped_bundle, decode_timeout_s=0.01) as client:
        answer = client.post("/predict", content=ENDLESS, headers=PNG)
        assert answer.status_code == 422
        assert "takes longer than 0.01 s to decode" in answer.text
        assert client.post("/predict", content=images.files[0], headers=JPEG).status_code == 200


def test_images_that_are_being_decoded_count_in_admission(
    shipped_bundle: Path, images: Images
) -> None:
    with (
        serving(shipped_bundle, decode_timeout_s=60, max_queue=1) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        front = client.app.state.front
        first = pool.submit(client.post, "/predict", content=ENDLESS, headers=PNG)
        while front.decoders.helper._inside == 0 and not first.done():
            pass
        assert front.admission.samples == 1
        second = client.post("/predict", content=images.files[0], headers=JPEG)
        assert first.result(60).status_code == 200
        assert second.status_code == 429
        assert front.admission.samples == 0


def rejected(client: TestClient, reason: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    name = f'eenet_rejected_total{{reason="{reason}"}} '
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


REFUSED = {
    "image_pixels": png_with([], side=5000),
    "image_pixels_per_byte": encode(Image.new("RGB", (4000, 4000)), "WEBP", lossless=True),
    "image_scans": with_scans(3),
    "image_parts": png_with([(b"abCd", b"")] * 10_000),
    "decode_timeout": png_with([], side=4400),
}


@pytest.fixture(scope="module")
def strict(shipped_bundle: Path) -> Iterator[TestClient]:
    bounds = {"max_pixels": 20_000_000, "max_pixels_per_byte": 1000, "max_scans": 2}
    with serving(shipped_bundle, decode_timeout_s=0.01, **bounds) as client:
        yield client


@pytest.mark.parametrize("reason", REFUSED)
@pytest.mark.parametrize("as_list", [False, True])
def test_every_bound_on_images_is_counted(strict: TestClient, reason: str, as_list: bool) -> None:
    before = rejected(strict, reason)
    if as_list:
        items = [base64.b64encode(REFUSED[reason]).decode()]
        (entry,) = strict.post("/predict", json={"images": items}).json()["predictions"]
        assert entry["error"]["status"] == 422
    else:
        answer = strict.post("/predict", content=REFUSED[reason], headers=PNG)
        assert answer.status_code == 422
    assert rejected(strict, reason) == before + 1


def test_small_images_pass_while_large_ones_are_decoded(
    shipped_bundle: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, leave, whole = threading.Event(), threading.Event(), ImagePreprocessor.__call__

    def held(self: ImagePreprocessor, data: bytes) -> ModelInput:
        begun.set()
        assert leave.wait(60)
        return whole(self, data)

    large = encode(smooth(1000, 1000))  # takes some 30 ms by its header
    with serving(shipped_bundle, decode_workers=1) as client, ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr(ImagePreprocessor, "__call__", held)
        waiting = [
            pool.submit(client.post, "/predict", content=large, headers=PNG) for _ in range(4)
        ]
        assert begun.wait(30)
        small = encode(smooth(160, 120), "JPEG", quality=100) + bytes(10_000)
        assert client.post("/predict", content=small, headers=JPEG).status_code == 200
        assert not any(each.done() for each in waiting)
        leave.set()
        assert {each.result(60).status_code for each in waiting} == {200}
