import numpy as np
import pytest
from numpy.typing import NDArray

import models.data.shapes
from models.data.dataset import DataConfig, Dataset
from models.data.shapes import CLASSES, TIPS, VALLEYS, load_shapes

Array = NDArray[np.float32]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the dataset small, so that it is drawn quickly."""
    for name, rows in (("TRAIN_ROWS", 120), ("CALIBRATION_ROWS", 30), ("TEST_ROWS", 60)):
        monkeypatch.setattr(models.data.shapes, name, rows)


def drawn(**config: int) -> Dataset:
    return load_shapes(DataConfig("shapes", **config))  # type: ignore[arg-type]


def images(dataset: Dataset) -> list[NDArray[np.uint8]]:
    return [
        np.asarray(split.inputs[:]) for split in (dataset.train, dataset.calibration, dataset.test)
    ]


def test_it_is_a_segmentation_of_five_classes_in_three_splits() -> None:
    dataset = drawn()
    assert dataset.task == "segmentation" and dataset.classes == CLASSES and len(CLASSES) == 5
    for split, rows in ((dataset.train, 120), (dataset.calibration, 30), (dataset.test, 60)):
        images = np.asarray(split.inputs[:])
        assert images.shape == (rows, 64, 64, 3) and images.dtype == np.uint8
        assert split.labels.shape == (rows, 64, 64) and split.labels.dtype == np.int64


def test_a_seed_draws_the_same_set_and_another_a_different_one() -> None:
    first, again, other = drawn(seed=3), drawn(seed=3), drawn(seed=4)
    for one, same, different in zip(images(first), images(again), images(other), strict=True):
        assert np.array_equal(one, same)
        assert not np.array_equal(one, different)
    for name in ("train", "calibration", "test"):
        assert np.array_equal(getattr(first, name).labels, getattr(again, name).labels)


def test_no_image_stands_in_two_splits() -> None:
    keys = [image.tobytes() for images in images(drawn()) for image in images]
    assert len(set(keys)) == len(keys)


def test_the_size_of_the_calibration_set_changes_no_other_split() -> None:
    usual, larger = drawn(), drawn(calibration_size=77)
    assert larger.calibration.labels.shape == (77, 64, 64)
    for name in ("train", "test"):
        assert np.array_equal(getattr(usual, name).labels, getattr(larger, name).labels)


def test_rows_to_certify_are_drawn_apart_and_change_no_other_split() -> None:
    usual, more = drawn(), drawn(certification_size=20)
    assert usual.certification is None and more.certification is not None
    assert more.certification.labels.shape == (20, 64, 64)
    held_out = {image.tobytes() for image in np.asarray(more.certification.inputs[:])}
    assert len(held_out) == 20
    for before, after in zip(images(usual), images(more), strict=True):
        assert np.array_equal(before, after)
        assert not held_out & {image.tobytes() for image in after}


def test_every_class_has_pixels_and_most_are_background() -> None:
    shares = np.bincount(drawn().train.labels.ravel(), minlength=5) / (120 * 64 * 64)
    assert 0.5 < shares[0] < 0.8
    assert (shares[1:] > 0.02).all()


def test_some_images_are_plain_and_some_are_hard() -> None:
    """Estimate the noise from neighbouring pixels of one class."""
    train = drawn().train
    images, masks = np.asarray(train.inputs[:]).astype(float), train.labels
    same = (masks[:, :, 1:] == masks[:, :, :-1])[..., None]
    steps = (np.abs(np.diff(images, axis=2)) * same).sum((1, 2, 3)) / (3 * same.sum((1, 2, 3)))
    low, high = np.percentile(steps, [10, 90])
    assert high > 3 * low


@pytest.mark.parametrize("size", [8, 32, 72])
def test_images_may_be_of_another_size(size: int) -> None:
    dataset = drawn(image_size=size)
    assert dataset.train.inputs[:].shape == (120, size, size, 3)  # type: ignore[union-attr]
    assert dataset.train.labels.shape == (120, size, size)
    assert dataset.train.labels.max() > 0


def test_a_size_that_is_no_multiple_of_8_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size is 60; give a multiple of 8, such as 64"):
        drawn(image_size=60)


def outline(kind: int, radius: float = 0.8) -> NDArray[np.bool_]:
    """Draw a single shape in the middle of 201 x 201 pixels, with its first tip to the right."""
    places = np.linspace(-1, 1, 201, dtype=np.float32)
    across, down = places[None, None, :], places[None, :, None]
    flat = np.zeros((1, 1, 1), np.float32)
    distances = models.data.shapes._distances(across, down, flat, flat + radius, np.array([kind]))
    return np.asarray(distances[0] < 0)


@pytest.mark.parametrize("kind", range(4))
def test_a_shape_has_its_tips_its_valleys_and_its_area(kind: int) -> None:
    inside = outline(kind)
    assert inside[100, 179] and not inside[100, 181]  # the tip at 0.8, 80 pixels from the middle
    turn = np.pi / TIPS[kind]
    for reach, expected in ((0.97, True), (1.03, False)):
        far = 80 * reach * VALLEYS[kind]
        place = round(100 + far * np.sin(turn)), round(100 + far * np.cos(turn))
        assert inside[place] == expected
    # Two triangles from the middle to each tip and the valleys beside it.
    area = TIPS[kind] * 80**2 * VALLEYS[kind] * np.sin(turn)
    assert inside.sum() == pytest.approx(area, rel=0.02)


def test_there_is_no_shape_of_no_size() -> None:
    assert not outline(0, radius=0.0).any()
