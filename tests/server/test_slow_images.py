from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.testclient import TestClient

from server.app import create_app
from server.settings import Settings
from tests.models.image_files import png_with

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
        helper = client.app.state.front.decode_helper
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
        while front.decode_helper._inside == 0 and not first.done():
            pass
        assert front.admission.samples == 1
        second = client.post("/predict", content=images.files[0], headers=JPEG)
        assert first.result(60).status_code == 200
        assert second.status_code == 429
        assert front.admission.samples == 0
