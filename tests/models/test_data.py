import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.data import CIFAR10_CLASSES, load_dataset


def picture(value: int, size: int = 4, mode: str = "RGB") -> Image.Image:
    """A flat picture that can be told from the others."""
    return Image.new("RGB", (size, size), (value, 255 - value, 7)).convert(mode)


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_npz(path: Path, **changes: Any) -> Path:
    """Twelve pictures, the last four for testing; picture i has red i and label i % 3."""
    blobs = [png(picture(i)) for i in range(12)]
    arrays = {
        "blob": np.frombuffer(b"".join(blobs), np.uint8),
        "off": np.cumsum([0, *map(len, blobs)]),
        "y": np.arange(12) % 3,
        "test": np.arange(12) >= 8,
        **changes,
    }
    np.savez(path, allow_pickle=False, **{k: v for k, v in arrays.items() if v is not None})
    return path


def write_folder(path: Path) -> Path:
    for part, start in (("train", 0), ("test", 100)):
        for label, name in enumerate(("cat", "ape", "dog")):
            (path / part / name).mkdir(parents=True)
            for i in range(2):
                picture(start + 10 * label + i).save(path / part / name / f"{i}.png")
    return path


def reds(images: np.ndarray) -> list[int]:
    return [int(value) for value in images[:, 0, 0, 0]]


def test_an_npz_gives_disjoint_splits_with_the_labels_of_its_pictures(tmp_path: Path) -> None:
    data = load_dataset(write_npz(tmp_path / "d.npz"), calibration_size=3, seed=0)
    assert data.classes == CIFAR10_CLASSES
    assert (len(data.train.labels), len(data.calibration.labels)) == (5, 3)
    assert sorted(reds(data.train.images) + reds(data.calibration.images)) == list(range(8))
    assert reds(data.test.images) == [8, 9, 10, 11]
    for split in (data.train, data.calibration, data.test):
        assert split.labels.tolist() == [red % 3 for red in reds(split.images)]
        assert split.images.shape[1:] == (4, 4, 3)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)


def test_the_seed_picks_the_calibration_set(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "d.npz")
    picks = [
        reds(load_dataset(path, calibration_size=3, seed=seed).calibration.images)
        for seed in (5, 5, 6, 7, 8)
    ]
    assert picks[0] == picks[1]
    assert len({tuple(pick) for pick in picks}) > 1


def test_an_npz_may_name_its_classes(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "d.npz", classes=np.array(["a", "b", "c"]))
    assert load_dataset(path, calibration_size=1, seed=0).classes == ("a", "b", "c")


@pytest.mark.parametrize("name", ["blob", "off", "y", "test"])
def test_an_array_that_an_npz_lacks_is_named(tmp_path: Path, name: str) -> None:
    path = write_npz(tmp_path / "d.npz", **{name: None})
    with pytest.raises(ValueError, match=f"d.npz lacks the array '{name}'"):
        load_dataset(path, calibration_size=1, seed=0)


@pytest.mark.parametrize(
    ("labels", "said"), [(np.arange(12), "0..11"), (np.arange(12) % 3 - 1, "-1..1")]
)
def test_labels_without_a_class_are_refused(tmp_path: Path, labels: np.ndarray, said: str) -> None:
    path = write_npz(tmp_path / "d.npz", y=labels)
    with pytest.raises(ValueError, match=f"labels {said} but 10 classes"):
        load_dataset(path, calibration_size=1, seed=0)


@pytest.mark.parametrize("size", [-1, 0, 8, 9])
def test_the_calibration_set_leaves_training_images(tmp_path: Path, size: int) -> None:
    path = write_npz(tmp_path / "d.npz")
    with pytest.raises(ValueError, match=f"calibration size {size} must lie between 1 and 7"):
        load_dataset(path, calibration_size=size, seed=0)


def test_a_folder_gives_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    data = load_dataset(write_folder(tmp_path), calibration_size=2, seed=0)
    assert data.classes == ("ape", "cat", "dog")
    assert dict(zip(reds(data.test.images), data.test.labels.tolist(), strict=True)) == {
        100: 1,
        101: 1,
        110: 0,
        111: 0,
        120: 2,
        121: 2,
    }


def test_a_folder_may_hold_other_files_and_grey_pictures(tmp_path: Path) -> None:
    path = write_folder(tmp_path)
    (path / "train/cat/notes.txt").write_text("no picture")
    (path / "train/README").write_text("no class")
    picture(50, mode="L").save(path / "train/dog/grey.PNG", "PNG")
    data = load_dataset(path, calibration_size=1, seed=0)
    assert len(data.train.labels) + len(data.calibration.labels) == 7


def test_a_folder_without_two_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train/cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds 1 class folders"):
        load_dataset(tmp_path, calibration_size=1, seed=0)


def test_a_folder_without_test_pictures_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path)
    (path / "test").rename(path / "later")
    with pytest.raises(ValueError, match="test holds no images"):
        load_dataset(path, calibration_size=1, seed=0)


@pytest.mark.parametrize("parts", [("train",), ("train", "test"), ("test",)])
def test_pictures_of_several_sizes_are_refused(tmp_path: Path, parts: tuple[str, ...]) -> None:
    path = write_folder(tmp_path)
    for part in parts:
        picture(3, size=5).save(path / part / "cat/0.png")
    with pytest.raises(ValueError, match="differ in size"):
        load_dataset(path, calibration_size=1, seed=0)


def test_training_and_test_pictures_of_two_sizes_are_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path)
    for file in (path / "test").rglob("*.png"):
        picture(3, size=5).save(file)
    with pytest.raises(ValueError, match="differ in size"):
        load_dataset(path, calibration_size=1, seed=0)


def test_a_damaged_picture_of_a_folder_is_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path)
    file = path / "train/cat/1.png"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"train/cat/1\.png"):
        load_dataset(path, calibration_size=1, seed=0)


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"not a zip archive")
    with pytest.raises(ValueError, match=r"d\.npz"):
        load_dataset(tmp_path / "d.npz", calibration_size=1, seed=0)


@pytest.mark.parametrize("name", ["missing", "missing.npz", "table.csv"])
def test_a_path_that_is_no_data_set_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(ValueError, match=f"{name} is neither"):
        load_dataset(tmp_path / name, calibration_size=1, seed=0)
