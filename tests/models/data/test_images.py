import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data import images
from models.data.images import TAIL_BYTES, EncodedImages, LazyImages, in_threads
from models.preprocess import ImagePreprocessor


def png(red: int, width: int = 4, height: int = 4) -> bytes:
    """Make an image of one colour, which differs from the others."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (red, 255 - red, 7)).save(stream, "PNG")
    return stream.getvalue()


def turned_jpeg(width: int, height: int) -> bytes:
    """Make an image that EXIF rotates by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize(
    "pick",
    [
        lambda images: images[np.array([2, 0, 2])],
        lambda images: images[np.array([2, 0, 2], np.intp)],
        lambda images: images[[2, 0, 2]],
    ],
)
def test_rows_are_decoded_in_the_order_asked_for(pick: Callable) -> None:
    encoded = EncodedImages([png(red) for red in (10, 20, 30, 40)], "d")
    images = LazyImages(encoded, np.array([1, 2, 3]), 4, 4)
    assert pick(images)[:, 0, 0, 0].tolist() == [40, 20, 40]


def test_a_slice_is_decoded_and_an_empty_one_is_empty() -> None:
    images = LazyImages(EncodedImages([png(red) for red in range(50)], "d"), np.arange(50), 4, 6)
    assert images[10:40:10][:, 0, 0, 0].tolist() == [10, 20, 30]
    assert images[50:].shape == (0, 4, 6, 3)
    assert images.shape == (50, 4, 6, 3) == images[:].shape
    assert len(images) == 50
    assert images[:].dtype == np.uint8


def test_images_are_decoded_as_the_server_does(images: object) -> None:
    files = [*images.files[:5], png(3, 40, 20), turned_jpeg(50, 60)]
    lazy = LazyImages(EncodedImages(files, "d"), np.arange(7), 8, 8)
    preprocess = ImagePreprocessor(8, 8, (0, 0, 0), (1, 1, 1))
    np.testing.assert_array_equal(lazy[:], [preprocess.decode(file) for file in files])


def test_a_damaged_image_is_named_when_it_is_asked_for() -> None:
    images = LazyImages(EncodedImages([png(1), png(2)[:50]], "set.npz"), np.array([1, 0]), 4, 4)
    assert images[1:].shape == (1, 4, 4, 3)
    with pytest.raises(ValueError, match=r"image 1 of set.npz cannot be used: the PNG image"):
        images[:]


def test_all_damaged_images_are_named_at_once() -> None:
    files = [png(1), png(2)[:50], png(3), b"", png(4)[:50]]
    encoded = EncodedImages(files, "d")
    with pytest.raises(ValueError, match=r"3 images .* image 1 of d .*image 3 of d .*image 4 of d"):
        encoded.common_size(4)
    images = LazyImages(EncodedImages([png(1), png(2)[:50], png(4)[:50]], "d"), np.arange(3), 4, 4)
    with pytest.raises(ValueError, match=r"2 images cannot be used: image 1 .* --skip-damaged"):
        images[:1], images[1:2]


def test_damaged_images_are_found_by_decoding() -> None:
    found = EncodedImages([png(1), png(2)[:50], b"no image"], "d").find_unusable()
    assert [row for row, _ in found] == [1, 2]


def test_the_common_size_is_height_and_width() -> None:
    assert EncodedImages([png(1, 6, 4), png(2, 6, 4)], "d").common_size(None) == (4, 6)


def test_the_common_size_is_that_of_the_upright_image() -> None:
    assert EncodedImages([turned_jpeg(6, 4), png(2, 4, 6)], "d").common_size(None) == (6, 4)


def test_images_of_several_sizes_need_an_image_size() -> None:
    encoded = EncodedImages([png(1), png(1), png(1, 6, 5)], "d")
    with pytest.raises(
        ValueError, match="image 2 of d is 6x5, but image 0 of d is 4x4; give --image-size"
    ):
        encoded.common_size(None)
    assert encoded.common_size(9) == (9, 9)


@pytest.mark.parametrize("data", [b"", b"no image", png(1)[:20]])
@pytest.mark.parametrize("image_size", [None, 4])
def test_what_is_no_image_is_named(data: bytes, image_size: int | None) -> None:
    with pytest.raises(ValueError, match="image 1 of d is damaged or not an image of a known"):
        EncodedImages([png(1), data], "d").common_size(image_size)


def test_an_image_too_large_for_the_server_is_named() -> None:
    stream = io.BytesIO()
    Image.new("1", (10_000, 5001)).save(stream, "PNG")
    with pytest.raises(ValueError, match="image 0 of d is 10000x5001, more than 50000000"):
        EncodedImages([stream.getvalue()], "d").common_size(32)


def test_files_are_read_when_they_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(1))
    images = LazyImages(EncodedImages([str(path)], "d"), np.array([0]), 4, 4)
    path.write_bytes(png(9))
    assert images[:][0, 0, 0, 0] == 9
    path.write_bytes(png(9)[:40])
    with pytest.raises(ValueError, match=r"a\.png cannot be used"):
        images[:]


def test_files_of_the_same_bytes_have_the_same_key(tmp_path: Path) -> None:
    tail = b"t" * TAIL_BYTES
    contents = [b"1" + tail, b"2" + tail, b"1" + tail, b"x", b"y", b"x", b"yy", b""]
    paths = [str(tmp_path / f"{i}") for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        Path(path).write_bytes(content)
    keys = EncodedImages(paths, "d").keys()
    for i, left in enumerate(contents):
        for j, right in enumerate(contents):
            assert (keys[i] == keys[j]) == (left == right)


def test_files_are_read_whole_only_where_they_look_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = images._digest
    monkeypatch.setattr(images, "_digest", lambda path: read.append(path) or digest(path))
    paths = []
    for name in ("aa", "ab", "aa ", "b"):
        path = tmp_path / name
        path.write_bytes(name.strip().encode())
        paths.append(str(path))
    EncodedImages(paths, "d").keys()
    assert sorted(read) == sorted([paths[0], paths[2]])


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100])
def test_threads_keep_the_order(count: int) -> None:
    assert in_threads(lambda item: -item, range(count)) == [-item for item in range(count)]
