import io
import sys

import numpy as np
import pytest
from PIL import Image

from models.data.transcode import to_known_format
from models.preprocess import InvalidInput


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], bands) if bands > 1 else size[::-1]
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8), mode)


def test_known_formats_stay_as_they_are() -> None:
    data = encoded(noise(), "PNG")
    assert to_known_format(data) is data


@pytest.mark.parametrize(
    "options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}]
)
def test_a_tiff_becomes_a_png_of_the_same_pixels(options: dict[str, str]) -> None:
    with Image.open(io.BytesIO(to_known_format(encoded(noise(), "TIFF", **options)))) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(noise()))


def test_of_a_tiff_the_first_page_is_read() -> None:
    pages = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with Image.open(io.BytesIO(to_known_format(data))) as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)


def test_a_tiff_for_printers_becomes_rgb_and_a_turned_one_upright() -> None:
    with Image.open(io.BytesIO(to_known_format(encoded(noise("CMYK"), "TIFF")))) as image:
        assert image.mode == "RGB"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(to_known_format(encoded(noise(), "TIFF", exif=exif)))) as image:
        assert image.size == (4, 6)


def test_a_profile_is_kept() -> None:
    data = to_known_format(encoded(noise(), "TIFF", icc_profile=b"profile"))
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["icc_profile"] == b"profile"


def test_damage_is_one_sentence() -> None:
    with pytest.raises(InvalidInput, match="the TIFF image is damaged or cut off"):
        to_known_format(encoded(noise(), "TIFF")[:40])
    with pytest.raises(InvalidInput, match="Git LFS pointer, not the image"):
        to_known_format(b"version https://git-lfs.github.com/spec/v1\n")


HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 40


def test_an_heic_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(InvalidInput, match=r"HEIC image, which needs the extra `heic`"):
        to_known_format(HEIC)


def test_an_heic_that_is_damaged_is_one_sentence() -> None:
    pytest.importorskip("pi_heif")
    with pytest.raises(InvalidInput, match="the HEIC image is damaged or cut off"):
        to_known_format(HEIC)
