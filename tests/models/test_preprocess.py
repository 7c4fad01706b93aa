import io
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models.preprocess import FORMATS, ImagePreprocessor, UndecodableImage
from models.train import IMAGENET_MEAN, IMAGENET_STD, normalise

preprocess = ImagePreprocessor(32, 32, IMAGENET_MEAN, IMAGENET_STD)
Pixels = NDArray[np.uint8]


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int = 32, width: int = 32) -> Pixels:
    """A picture that lossy formats keep nearly."""
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([255 * down, 255 * across, 255 - 127 * (down + across)], -1).astype(np.uint8)


def encode(image: Image.Image | Pixels, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image.save(stream, format, **options)
    return stream.getvalue()


def furthest(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).max())


def on_white(colour: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    share = alpha[..., None] / 255
    return np.broadcast_to(colour * share + 255 * (1 - share), (*alpha.shape, 3))


def refusal(data: bytes, of: ImagePreprocessor = preprocess) -> str:
    with pytest.raises(UndecodableImage) as caught:
        of(data)
    sentence = str(caught.value)
    assert sentence and "\n" not in sentence and len(sentence) < 300
    return sentence


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds one empty chunk of data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"")
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_an_rgb_png_of_the_right_size_passes_bit_for_bit() -> None:
    pixels = noise(32, 32, 3)
    assert np.array_equal(preprocess.decode(encode(pixels)), pixels)


def test_bytes_become_one_row_of_network_input() -> None:
    pixels = noise(32, 32, 3)
    row = preprocess(encode(pixels))
    assert (row.shape, row.dtype, row.flags.c_contiguous) == ((1, 3, 32, 32), np.float32, True)
    expected = (pixels[5, 7] / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(row[0, :, 5, 7], expected, atol=1e-6)


def test_serving_normalises_as_training_does() -> None:
    pixels = noise(3, 32, 32, 3)
    trained = normalise(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(preprocess.normalise(pixels), trained, rtol=0, atol=1e-6)


def test_height_and_width_are_told_apart() -> None:
    pixels = noise(12, 20, 3)
    flat = ImagePreprocessor(12, 20, IMAGENET_MEAN, IMAGENET_STD)
    assert np.array_equal(flat.decode(encode(pixels)), pixels)
    assert flat(encode(noise(40, 40, 3))).shape == (1, 3, 12, 20)


def test_grey_fills_three_channels() -> None:
    grey = noise(32, 32)
    assert np.array_equal(preprocess.decode(encode(grey)), np.stack([grey] * 3, -1))


def test_grey_with_alpha_is_laid_on_white() -> None:
    grey, alpha = noise(32, 32, 2).transpose(2, 0, 1)
    decoded = preprocess.decode(encode(Image.fromarray(np.stack([grey, alpha], -1), "LA")))
    assert furthest(decoded, on_white(grey[..., None], alpha)) <= 1


def test_colour_with_alpha_is_laid_on_white() -> None:
    pixels = noise(32, 32, 4)
    decoded = preprocess.decode(encode(pixels))
    assert furthest(decoded, on_white(pixels[..., :3], pixels[..., 3])) <= 1


@pytest.mark.parametrize("transparent", [None, 3])
def test_a_palette_is_looked_up_and_its_transparent_colour_is_white(
    transparent: int | None,
) -> None:
    indices, colours = noise(32, 32) % 8, noise(8, 3)
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.tobytes())
    options = {} if transparent is None else {"transparency": transparent}
    expected = colours[indices]
    if transparent is not None:
        expected[indices == transparent] = 255
    assert np.array_equal(preprocess.decode(encode(image, **options)), expected)


def test_one_bit_is_black_and_white() -> None:
    bits = noise(32, 32) > 127
    expected = np.repeat(bits[..., None] * np.uint8(255), 3, -1)
    assert np.array_equal(preprocess.decode(encode(Image.fromarray(bits))), expected)


def test_sixteen_bits_of_grey_are_scaled_to_eight() -> None:
    grey = noise(32, 32)
    data = encode(Image.fromarray(grey.astype(np.uint16) * 257))
    assert data[24] == 16  # the header's bit depth
    assert np.array_equal(preprocess.decode(data), np.stack([grey] * 3, -1))


def test_a_cmyk_jpeg_has_its_colours() -> None:
    ink = (200, 40, 0, 60)
    data = encode(Image.new("CMYK", (32, 32), ink), "JPEG", quality=95)
    expected = [(255 - c) * (255 - ink[3]) / 255 for c in ink[:3]]
    assert furthest(preprocess.decode(data), np.full((32, 32, 3), expected)) <= 4


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_a_picture_stored_askew_comes_out_upright(
    format: str, orientation: int, stored: Image.Transpose | None
) -> None:
    upright = Image.fromarray(smooth(32, 64))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright if stored is None else upright.transpose(stored)
    data = encode(image, format, exif=exif, **({} if format == "PNG" else {"quality": 95}))
    assert furthest(preprocess.decode(data), np.asarray(upright)[:, 16:48]) <= 12


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_the_middle_of_a_large_picture_is_kept(format: str) -> None:
    pixels = np.zeros((2000, 3000, 3), np.uint8)
    pixels[:1000] = (0, 0, 255)
    pixels[1000:] = (0, 255, 0)
    pixels[:, :350] = pixels[:, 2650:] = (255, 0, 0)  # beyond the middle and the filter's reach
    fast = {"compress_level": 1} if format == "PNG" else {"quality": 95}
    decoded = preprocess.decode(encode(pixels, format, **fast))
    assert decoded.shape == (32, 32, 3)
    assert furthest(decoded[:15], np.full((15, 32, 3), (0, 0, 255))) <= 12
    assert furthest(decoded[17:], np.full((15, 32, 3), (0, 255, 0))) <= 12


def test_one_pixel_fills_the_input() -> None:
    decoded = preprocess.decode(encode(np.array([[[9, 80, 200]]], np.uint8)))
    assert np.array_equal(decoded, np.full((32, 32, 3), (9, 80, 200)))


@pytest.mark.parametrize("upright", [False, True])
def test_the_middle_of_a_very_long_picture_is_kept(upright: bool) -> None:
    pixels = np.full((3, 2000, 3), 255, np.uint8)
    pixels[:, 990:1010] = (10, 20, 30)
    data = encode(pixels.transpose(1, 0, 2).copy() if upright else pixels)
    assert np.array_equal(preprocess.decode(data), np.full((32, 32, 3), (10, 20, 30)))


def test_a_progressive_jpeg_is_the_baseline_one() -> None:
    pixels = smooth()
    plain, progressive = (encode(pixels, "JPEG", progressive=flag) for flag in (False, True))
    assert plain != progressive
    assert np.array_equal(preprocess.decode(progressive), preprocess.decode(plain))
    assert furthest(preprocess.decode(plain), pixels) <= 24


@pytest.mark.parametrize(("format", "options"), [("WEBP", {"lossless": True}), ("BMP", {})])
def test_lossless_formats_pass_bit_for_bit(format: str, options: dict[str, Any]) -> None:
    pixels = noise(32, 32, 3)
    assert np.array_equal(preprocess.decode(encode(pixels, format, **options)), pixels)


def test_of_a_moving_gif_the_first_frame_is_read() -> None:
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    data = encode(first, "GIF", save_all=True, append_images=[second])
    assert np.array_equal(preprocess.decode(data), np.full((32, 32, 3), (255, 0, 0)))


def test_unreadable_exif_does_not_spoil_a_good_picture() -> None:
    pixels = noise(32, 32, 3)
    data = encode(pixels, exif=b"Exif\x00\x00nonsense")
    assert np.array_equal(preprocess.decode(data), pixels)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_cut_off_picture_is_refused(format: str) -> None:
    data = encode(noise(32, 32, 3), format)
    for cut in range(1, len(data) - 40, 37):
        refusal(data[:cut])
    assert "damaged or cut off" in refusal(data[: len(data) // 2])


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_that_lacks_its_last_bytes_is_whole_or_refused(format: str) -> None:
    data = encode(noise(32, 32, 3), format)
    whole = preprocess.decode(data)
    for cut in range(len(data) - 20, len(data)):
        try:
            decoded = preprocess.decode(data[:cut])
        except UndecodableImage:
            continue
        assert np.array_equal(decoded, whole)


def test_nothing_is_refused_as_empty() -> None:
    assert "empty" in refusal(b"")


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"<!doctype html><html><body>404</body></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        encode(noise(4, 4, 3), "TIFF"),
        encode(noise(4, 4, 3), "PPM"),
        encode(noise(4, 4, 3), "ICO"),
    ],
    ids=["text", "html", "svg", "pdf", "eps", "tiff", "ppm", "ico"],
)
def test_other_files_are_refused_with_the_formats_we_read(data: bytes) -> None:
    assert "PNG, JPEG, WEBP, GIF, BMP" in refusal(data)


@settings(max_examples=200, deadline=None, database=None)
@given(
    st.sampled_from(
        [
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff\xe0",
            b"GIF89a",
            b"BM",
            b"RIFF\x20\0\0\0WEBPVP8 ",
        ]
    ),
    st.binary(max_size=200),
)
def test_random_bytes_are_a_picture_or_refused(magic: bytes, rest: bytes) -> None:
    try:
        assert preprocess(magic + rest).shape == (1, 3, 32, 32)
    except UndecodableImage as error:
        assert "\n" not in str(error)


@settings(max_examples=300, deadline=None, database=None)
@given(st.sampled_from(FORMATS), st.data())
def test_a_damaged_picture_is_a_picture_or_refused(format: str, data: st.DataObject) -> None:
    damaged = bytearray(encode(smooth(16, 16), format))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert preprocess(bytes(damaged)).shape == (1, 3, 32, 32)
    except UndecodableImage as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (8_000, 8_000), (1, 2**31 - 1)])
def test_too_many_pixels_are_refused_from_the_header(width: int, height: int) -> None:
    data, started = png_header(width, height), time.perf_counter()
    assert len(data) < 100
    assert "more than 50000000 pixels" in refusal(data)
    assert time.perf_counter() - started < 0.5


def test_the_pixel_limit_is_exact() -> None:
    small = ImagePreprocessor(32, 32, IMAGENET_MEAN, IMAGENET_STD, max_pixels=120)
    assert small.decode(encode(noise(10, 12, 3))).shape == (32, 32, 3)
    assert "11x11, more than 120 pixels" in refusal(encode(noise(11, 11, 3)), small)


def test_a_picture_from_a_file_of_another_suffix_is_read_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "photo.txt").write_bytes(encode(noise(32, 32, 3), "WEBP"))
    assert preprocess((tmp_path / "photo.txt").read_bytes()).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16"])
@pytest.mark.parametrize("size", [(2000, 1000), (1000, 2000), (1001, 301), (640, 640)])
def test_large_pictures_keep_their_middle(mode: str, size: tuple[int, int]) -> None:
    # White inside the middle square's right half, black elsewhere: no shrinking may move it.
    width, height = size
    grey = np.zeros((height, width), np.uint8)
    grey[:, width // 2 :] = 255
    image = Image.fromarray(grey)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    small = ImagePreprocessor(32, 32, (0, 0, 0), (1, 1, 1)).decode(buffer.getvalue())
    assert small[:, :15].max() <= 30 and small[:, 17:].min() >= 225
