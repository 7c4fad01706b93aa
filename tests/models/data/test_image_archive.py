import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.data.image_archive import CIFAR10_CLASSES, read_image_archive


def write_archive(path: Path, **changes: Any) -> Path:
    """Twelve would-be images, the last four for testing; image i has label i % 3."""
    blobs = [b"image %d" % i for i in range(12)]
    arrays = {
        "blob": np.frombuffer(b"".join(blobs), np.uint8),
        "off": np.cumsum([0, *map(len, blobs)]).astype(np.uint32),
        "y": (np.arange(12) % 3).astype(np.uint8),
        "test": np.arange(12) >= 8,
        **changes,
    }
    np.savez(path, allow_pickle=False, **{k: v for k, v in arrays.items() if v is not None})
    return path


def test_images_labels_and_test_marks_are_read(tmp_path: Path) -> None:
    found = read_image_archive(write_archive(tmp_path / "d.npz"))
    assert found.classes == CIFAR10_CLASSES
    assert found.inputs.items == [b"image %d" % i for i in range(12)]
    assert found.inputs.name(3) == f"image 3 of {tmp_path / 'd.npz'}"
    assert found.labels.tolist() == [0, 1, 2] * 4
    assert found.labels.dtype == np.int64
    assert found.is_test is not None
    assert found.is_test.tolist() == [False] * 8 + [True] * 4


def test_an_archive_may_name_its_classes(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "d.npz", classes=np.array(["a", "b", "c"]))
    assert read_image_archive(path).classes == ("a", "b", "c")


@pytest.mark.parametrize("name", ["blob", "off", "y", "test"])
def test_a_lacking_array_is_named(tmp_path: Path, name: str) -> None:
    path = write_archive(tmp_path / "d.npz", **{name: None})
    with pytest.raises(ValueError, match=f"d.npz lacks the array '{name}'"):
        read_image_archive(path)


@pytest.mark.parametrize(
    ("labels", "message"), [(np.arange(12), "0..11"), (np.arange(12) % 3 - 1, "-1..1")]
)
def test_labels_without_a_class_are_refused(
    tmp_path: Path, labels: np.ndarray, message: str
) -> None:
    path = write_archive(tmp_path / "d.npz", y=labels)
    with pytest.raises(ValueError, match=f"labels {message} but 10 classes"):
        read_image_archive(path)


@pytest.mark.parametrize(
    "changes", [{"y": np.zeros(11)}, {"test": np.zeros(13)}, {"off": np.arange(12)}]
)
def test_arrays_that_do_not_fit_together_are_refused(
    tmp_path: Path, changes: dict[str, np.ndarray]
) -> None:
    path = write_archive(tmp_path / "d.npz", **changes)
    with pytest.raises(ValueError, match=r"offsets, .* labels and .* test marks; N images"):
        read_image_archive(path)


@pytest.mark.parametrize("count", [0, 12])
def test_an_archive_needs_training_and_test_images(tmp_path: Path, count: int) -> None:
    path = write_archive(tmp_path / "d.npz", test=np.arange(12) < count)
    with pytest.raises(ValueError, match=f"marks {count} of 12 images as test"):
        read_image_archive(path)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros(9))
    for data in (b"", b"not a zip archive", stream.getvalue()[:100]):
        (tmp_path / "d.npz").write_bytes(data)
        with pytest.raises(ValueError, match=r"d\.npz cannot be read as an \.npz file"):
            read_image_archive(tmp_path / "d.npz")
