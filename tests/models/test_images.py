import io
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from models.images import (
    MAX_PASSES,
    MAX_SCANS,
    SLOW_GIF_BYTES,
    SLOW_MS,
    DecodedImage,
    ImageDecoder,
    InvalidInput,
    Postponed,
)
from models.jpeg import plain_size
from tests.models.image_files import Pixels, encode, exif_of, png_with, segment, smooth, with_scans

decoder = ImageDecoder(32, 32)
patient = ImageDecoder(32, 32, max_pixels_per_byte=10**9)


def whole(data: bytes, side: int) -> Pixels:
    """Decode at the full size, then resize at once."""
    with Image.open(io.BytesIO(data)) as image:
        rgb = image.convert("RGB")
    return np.asarray(ImageOps.fit(rgb, (side, side), Image.Resampling.BICUBIC))


def furthest(a: Pixels, b: Pixels) -> int:
    return int(np.abs(a.astype(int) - b).max())


def scans_of(width: int, height: int, scans: int) -> bytes:
    """Make a JPEG with a large size in its header, which is not worth decoding."""
    data = with_scans(scans)
    return data.replace(struct.pack(">HH", 16, 16), struct.pack(">HH", height, width))


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (33, 47), (100, 20), (120, 90)])
@pytest.mark.parametrize("subsampling", [0, 1, 2, "grey"])
def test_plain_jpegs_are_decoded_as_pillow_does(size: tuple[int, int], subsampling: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    if subsampling == "grey":
        data = encode(image.convert("L"), "JPEG")
    else:
        data = encode(image, "JPEG", subsampling=subsampling)
    assert plain_size(data) == size
    decoded = decoder.decode(data)
    by_pillow = decoder._to_pixels(decoder._open(data))
    assert decoded.size == by_pillow.size == size
    assert furthest(decoded.pixels, by_pillow.pixels) <= 2
    fast = decoder.decode_if_fast(data)
    assert isinstance(fast, DecodedImage) and np.array_equal(fast.pixels, decoded.pixels)


def outcome(decode: Callable[[], DecodedImage]) -> Pixels | str:
    try:
        return decode().pixels
    except InvalidInput as error:
        return str(error)


@settings(max_examples=200, deadline=None, database=None)
@given(data=st.data())
def test_a_damaged_plain_jpeg_is_pillows_to_judge(data: st.DataObject) -> None:
    damaged = bytearray(encode(smooth(), "JPEG"))
    cut = data.draw(st.integers(200, len(damaged) - 2))
    if data.draw(st.booleans()):
        del damaged[cut:-2]
    else:
        damaged[cut] = data.draw(st.integers(0, 255))
    file = bytes(damaged)
    here = outcome(lambda: decoder.decode(file))
    by_pillow = outcome(lambda: decoder._to_pixels(decoder._open(file)))
    assert np.array_equal(here, by_pillow) and type(here) is type(by_pillow)


@pytest.mark.parametrize("size", [(1000, 750), (750, 1000), (4000, 800), (2000, 1500)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + exif_of(1)}])
def test_a_reduced_jpeg_is_close_to_the_whole_one(
    size: tuple[int, int], options: dict[str, Any]
) -> None:
    data = encode(smooth(*size[::-1]), "JPEG", quality=90, **options)
    decoded = ImageDecoder(224, 224).decode(data)
    assert decoded.size == size
    assert np.abs(decoded.pixels.astype(int) - whole(data, 224)).mean() <= 1


@pytest.mark.parametrize(
    ("side", "short", "scale"),
    [
        (224, 750, 2),
        (224, 716, 1),
        (224, 1434, 4),
        (224, 2868, 8),
        (224, 224, 1),
        (32, 255, 1),
        (32, 256, 2),
        (32, 4000, 8),
        (128, 511, 1),
        (128, 512, 2),
        (1000, 3000, 1),
    ],
)
def test_the_smallest_scale_that_resizing_can_use(side: int, short: int, scale: int) -> None:
    for size in ((short, 2 * short), (2 * short, short)):
        assert ImageDecoder(side, side)._jpeg_scale(size) == scale
        assert ImageDecoder(side // 2, side)._jpeg_scale(size) == scale


def test_scans_are_bounded_by_number_and_by_pixels() -> None:
    few = ImageDecoder(32, 32, max_pixels=100 * 100)
    assert isinstance(few.decode_if_fast(with_scans(MAX_SCANS)), DecodedImage)
    with pytest.raises(InvalidInput, match=f"more than {MAX_SCANS} scans"):
        few.decode(with_scans(MAX_SCANS + 1))
    with pytest.raises(InvalidInput, match=f"more than {MAX_PASSES} scans.*for 100x100 pixels"):
        few.decode(scans_of(100, 100, MAX_PASSES + 1))
    with pytest.raises(InvalidInput, match="more than 20 scans"):
        few.decode(scans_of(100, 50, 21))
    for data in (scans_of(100, 100, MAX_PASSES), scans_of(100, 50, 20)):
        few._open(data).image.close()
    with pytest.raises(InvalidInput, match="more than the allowed 10000 pixels"):
        few.decode(scans_of(101, 100, 1))


def test_a_film_behind_a_large_image_counts_no_scans() -> None:
    data = encode(smooth(100, 100), "JPEG") + b"\xff\xda" * 500
    assert ImageDecoder(32, 32, max_pixels=10_000).decode(data).size == (100, 100)


def header_only(format: str, width: int, height: int) -> bytes:
    """Make a file of which only the header is right."""
    if format == "PNG":
        return png_with([], side=height)
    if format == "JPEG":
        return scans_of(width, height, 1)
    data = bytearray(encode(smooth(8, 8), format))
    if format == "BMP":
        data[18:26] = struct.pack("<II", width, height)
    else:
        data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


@pytest.mark.parametrize(
    ("format", "width", "height"),
    [("PNG", 2000, 2000), ("BMP", 7000, 6000), ("JPEG", 5000, 5000), ("GIF", 4000, 4000)],
)
def test_a_file_is_slow_by_its_header(format: str, width: int, height: int) -> None:
    data = header_only(format, width, height)
    postponed = patient.decode_if_fast(data)
    assert isinstance(postponed, Postponed) and postponed.pixels >= width * height
    assert postponed.expected_ms > SLOW_MS and patient.decode_if_small(data) is None
    try:
        patient.decode_if_fast(header_only(format, 64, 64))
    except InvalidInput as error:
        assert "damaged" in str(error)  # it was tried


def test_a_slow_plain_jpeg_is_slow_and_many_scans_count() -> None:
    large = ImageDecoder(4000, 4000)
    plain = encode(np.zeros((4500, 4600, 3), np.uint8), "JPEG")
    assert isinstance(large.decode_if_fast(plain), Postponed)
    wordy = scans_of(1800, 1800, 30) + bytes(4000)
    assert isinstance(decoder.decode_if_fast(wordy), Postponed)
    assert isinstance(decoder.decode_if_fast(scans_of(180, 180, 30)), DecodedImage)


def test_a_gif_with_many_blocks_is_slow_before_it_is_opened() -> None:
    data = encode(smooth(), "GIF")
    comment = b"!\xfe" + b"\1x" * (SLOW_GIF_BYTES // 2) + b"\0"
    at = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    assert isinstance(decoder.decode_if_fast(data), DecodedImage)
    assert isinstance(decoder.decode_if_fast(data[:at] + comment + data[at:]), Postponed)


def test_packed_comments_are_not_unpacked() -> None:
    packed = zlib.compress(bytes(2**20), 9)
    bomb = png_with((b"zTXt", b"a%d\0\0" % n + packed) for n in range(7))
    plain = decoder.decode_if_small(png_with([]))
    started = time.perf_counter()
    decoded = decoder.decode_if_small(bomb)
    assert time.perf_counter() - started < 0.5
    assert decoded is not None and plain is not None
    assert np.array_equal(decoded.pixels, plain.pixels)
    profile = png_with([(b"iCCP", b"p\0\0" + packed)])
    assert np.array_equal(decoder.decode(profile).pixels, plain.pixels)


def test_exif_data_are_not_parsed_but_for_the_orientation() -> None:
    entries = b"".join(struct.pack("<HHII", tag, 3, 10_000, 8) for tag in range(300, 2800))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 2500) + entries
    data = encode(smooth(), "JPEG")
    odd = data[:2] + segment(0xE1, b"Exif\0\0" + exif) + data[2:]
    assert np.array_equal(decoder.decode(odd).pixels, decoder.decode(data).pixels)


def test_too_many_parts_are_refused() -> None:
    data = encode(smooth(), "JPEG")
    with pytest.raises(InvalidInput, match="more than 1000 segments"):
        decoder.decode(data[:2] + segment(0xFE, b"") * 1000 + data[2:])
    with pytest.raises(InvalidInput, match="more than 10000 chunks"):
        decoder.decode(png_with([(b"abCd", b"")] * 10_000))


@pytest.mark.parametrize("fit", ["cover", "stretch"])
def test_a_crop_keeps_the_middle(fit: Literal["cover", "stretch"]) -> None:
    pixels = np.zeros((80, 160, 3), np.uint8)
    pixels[10:70, 20:140] = 200  # three quarters of both sides
    data = encode(pixels, "PNG")
    whole = ImageDecoder(32, 32, fit).decode(data).pixels
    cropped = ImageDecoder(32, 32, fit, crop=0.75).decode(data).pixels
    assert whole[0].max() == 0 and cropped[2:-2, 2:-2].min() == 200
    assert (cropped[0, 0] > 100).all()


def test_a_plain_jpeg_of_the_right_size_is_cropped_too() -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[4:28, 4:28] = 200
    data = encode(pixels, "JPEG", quality=95)
    cropped = ImageDecoder(32, 32, crop=0.75).decode(data).pixels
    assert cropped[4:-4, 4:-4].min() > 150 and cropped[0, 16].min() > 60
