"""Segmentations as images, and over HTTP."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base
from starlette.testclient import TestClient

from models.bundle import load_bundle
from models.networks.fcn import coarse_grid
from models.networks.multi_exit import MultiExitModel
from models.postprocess import mask_png
from models.preprocess import ImagePreprocessor
from server.app import create_app
from server.pipeline.runs import load_run
from server.settings import Settings

PNG = {"content-type": "image/png"}
CLASSES = ("background", "circle", "square", "triangle", "star")
SIDE = 16


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_pixels_are_class_ids() -> None:
    classes = np.random.default_rng(0).integers(0, 7, (6, 4))
    mask = opened(mask_png(np.eye(7, dtype=np.float32)[classes], (4, 6)))
    assert (mask.format, mask.mode, mask.size) == ("PNG", "P", (4, 6))
    assert np.array_equal(np.asarray(mask), classes)


def test_every_class_has_a_colour_of_its_own_and_the_first_is_black() -> None:
    mask = opened(mask_png(np.eye(256, dtype=np.float32)[np.arange(256)[None]], (256, 1)))
    assert np.array_equal(np.asarray(mask)[0], np.arange(256))
    colours = [tuple(colour) for colour in np.asarray(mask.convert("RGB"))[0]]
    assert colours[0] == (0, 0, 0)
    assert len(set(colours[:32])) == 32


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (8, 12), (9, 5), (100, 1)])
def test_a_mask_is_scaled_without_mixing_classes(size: tuple[int, int]) -> None:
    classes = np.array([[0, 4], [2, 1]])
    mask = np.asarray(opened(mask_png(np.eye(5, dtype=np.float32)[classes], size)))
    assert mask.shape == (size[1], size[0])
    assert set(mask.flat) <= {0, 4, 2, 1}
    if min(size) > 4:
        assert (mask[0, 0], mask[0, -1], mask[-1, 0], mask[-1, -1]) == (0, 4, 2, 1)


@pytest.fixture(scope="module")
def segmenting(mask_bundle: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(bundle=(mask_bundle,), max_batch=4))) as client:
        yield client


class Reference:
    """What the network says, without graphs and server."""

    def __init__(self, model: MultiExitModel, preprocess: ImagePreprocessor) -> None:
        self.model = model.eval()
        self.preprocess = preprocess

    @torch.inference_mode()
    def logits(self, image: Image.Image) -> torch.Tensor:
        """Of every exit, (K, 1, H, W, C)."""
        squeezed = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pixels = self.preprocess.normalise(np.asarray(squeezed)[None])
        logits: torch.Tensor = self.model(torch.from_numpy(pixels))
        return logits

    def mask(self, image: Image.Image, exit: int = -1) -> NDArray[np.uint8]:
        """Class ids, of the image's size."""
        classes = self.logits(image)[exit, 0].argmax(-1).numpy().astype(np.uint8)
        return np.asarray(Image.fromarray(classes).resize(image.size, Image.Resampling.NEAREST))

    def shares(self, image: Image.Image, exit: int = -1) -> NDArray[np.float32]:
        """Of the classes, (C,)."""
        shares: NDArray[np.float32] = coarse_grid(self.logits(image)[exit]).exp()[0].mean(0)
        return shares.numpy()


@pytest.fixture(scope="module")
def reference(mask_run: Path, mask_bundle: Path) -> Reference:
    preprocess = load_bundle(mask_bundle).preprocessor(10_000)
    assert isinstance(preprocess, ImagePreprocessor)
    return Reference(load_run(mask_run).model, preprocess)


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth enough to have areas."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def ask(client: TestClient, data: bytes, **options: object) -> dict[str, Any]:
    answer = client.post("/predict", params=options, content=data, headers=PNG)
    assert answer.status_code == 200, answer.text
    return answer.json()


def mask_of(answer: dict[str, Any]) -> NDArray[np.uint8]:
    mask = opened(base64.b64decode(answer["mask"], validate=True))
    assert (mask.format, mask.mode) == ("PNG", "P")
    return np.asarray(mask)


@pytest.mark.parametrize(("budget_ms", "exit"), [(1e-3, 0), (1e6, 1)])
@pytest.mark.parametrize("size", [(16, 16), (40, 24), (24, 40), (7, 5), (1, 1), (1000, 100)])
def test_the_mask_is_of_the_images_own_size_and_of_its_exit(
    segmenting: TestClient,
    reference: Reference,
    size: tuple[int, int],
    budget_ms: float,
    exit: int,
) -> None:
    given = image(*size)
    answer = ask(segmenting, encoded(given), budget_ms=budget_ms)
    assert answer["exit"] == exit
    mask = mask_of(answer)
    assert mask.shape == (size[1], size[0])
    assert (mask == reference.mask(given, exit)).mean() > 0.98  # but for pixels on the fence


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_mask_lies_on_the_upright_image(
    segmenting: TestClient, reference: Reference, orientation: int
) -> None:
    given, exif = image(40, 24), Image.Exif()
    exif[Base.Orientation] = orientation
    answer = ask(segmenting, encoded(given, exif=exif), budget_ms=1e-3)
    turns = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_270],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_90],
    }
    for turn in turns.get(orientation, []):
        given = given.transpose(turn)
    mask = mask_of(answer)
    assert mask.shape == (given.height, given.width)
    assert (mask == reference.mask(given, exit=0)).mean() > 0.98


def test_the_label_and_the_ranking_are_shares_of_the_image(
    segmenting: TestClient, reference: Reference
) -> None:
    given = image(16, 16, seed=3)
    for exit, budget_ms in ((0, 1e-3), (1, 1e6)):
        answer = ask(segmenting, encoded(given), budget_ms=budget_ms)
        shares = reference.shares(given, exit)
        shown = {entry["class_id"]: entry["probability"] for entry in answer["top_k"]}
        assert sum(shown.values()) == pytest.approx(1, abs=1e-5)
        assert [shown[c] for c in range(5)] == pytest.approx(shares.tolist(), abs=1e-3)
        assert answer["class_id"] == shares.argmax()
        assert answer["label"] == CLASSES[answer["class_id"]]
        assert answer["confidence"] == answer["top_k"][0]["probability"]
        ranked = [entry["probability"] for entry in answer["top_k"]]
        assert ranked == sorted(ranked, reverse=True)
    assert len(ask(segmenting, encoded(given), top_k=2)["top_k"]) == 2


def test_the_trace_shows_shares_too(segmenting: TestClient, reference: Reference) -> None:
    given = image(16, 16, seed=4)
    trace = ask(segmenting, encoded(given), budget_ms=1e6, trace=True)["trace"]
    assert [entry["exit"] for entry in trace] == [0, 1]
    for exit, entry in enumerate(trace):
        shares = reference.shares(given, exit)
        assert entry["confidence"] == pytest.approx(float(shares.max()), abs=1e-3)
        assert entry["label"] == CLASSES[shares.argmax()]
        assert 0 < entry["score"] <= 1


def test_a_list_has_a_mask_for_every_image_and_a_bad_item_hurts_no_other(
    segmenting: TestClient, reference: Reference
) -> None:
    sizes = [(16, 16), (30, 20), (5, 9), (64, 64), (33, 1)]
    given = [image(*size, seed=seed) for seed, size in enumerate(sizes)]
    items = [base64.b64encode(encoded(each)).decode() for each in given]
    items.insert(2, base64.b64encode(b"no image").decode())
    given.insert(2, given[0])
    body = {"images": items, "budget_ms": 1e-3}
    answers = segmenting.post("/predict", json=body).json()["predictions"]
    assert answers[2]["error"]["status"] == 422 and "mask" not in answers[2]
    for index in (0, 1, 3, 4, 5):
        mask = mask_of(answers[index])
        assert mask.shape == given[index].size[::-1]
        assert (mask == reference.mask(given[index], exit=0)).mean() > 0.95


def test_the_other_ways_of_sending_an_image_have_masks_too(segmenting: TestClient) -> None:
    data = encoded(image(20, 10))
    answers = [
        segmenting.post("/predict?budget_ms=0.001", files={"file": ("a.png", data, "image/png")}),
        segmenting.post(
            "/predict", json={"image": base64.b64encode(data).decode(), "budget_ms": 1e-3}
        ),
    ]
    first = mask_of(ask(segmenting, data, budget_ms=1e-3))
    assert len(np.unique(first)) > 1
    for answer in answers:
        assert np.array_equal(mask_of(answer.json()), first)


def test_what_is_no_image_is_422(segmenting: TestClient) -> None:
    answer = segmenting.post("/predict", content=b"no image", headers=PNG)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_content")
    text = segmenting.post("/predict", json={"text": "circle"})
    assert (text.status_code, text.json()["code"]) == (404, "unknown_model")


def test_a_model_of_masks_beside_one_of_labels_must_be_named(
    mask_bundle: Path, shipped_bundle: Path
) -> None:
    data = encoded(image(12, 10))
    with TestClient(create_app(Settings(bundle=(mask_bundle, shipped_bundle)))) as client:
        answer = client.post("/predict", content=data, headers=PNG)
        assert answer.status_code == 422
        assert "name one of cifar10-resnet56, shapes as model" in answer.json()["detail"]
        assert "mask" in ask(client, data, model="shapes")
        assert "mask" not in ask(client, data, model="cifar10-resnet56")
