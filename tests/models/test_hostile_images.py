"""Files that are small and costly: refused by their headers, or told to take long."""

import io
import struct
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from models.images import SLOW_MS, DecodedImage, ImageDecoder, InvalidInput, Postponed
from tests.models.image_files import chunk, encode, exif_of, png_with, segment, smooth, with_scans

decoder = ImageDecoder(32, 32)
FRAME = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def blank(format: str, side: int, **options: object) -> bytes:
    return encode(Image.new("RGB", (side, side)), format, **options)


def animated(format: str, frames: int) -> bytes:
    others = [FRAME.rotate(n % 360) for n in range(1, frames)]
    return encode(FRAME, format, save_all=True, append_images=others)


def png_of(
    width: int, height: int, raw: bytes, depth: int, kind: int, interlaced: int = 0
) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bmp_of(side: int, runs: bytes, compression: int = 1) -> bytes:
    start = 54 + 1024
    head = b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start)
    head += struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, compression, len(runs), 0, 0, 256, 0)
    return head + bytes(1024) + runs


@pytest.mark.parametrize("format", ["WEBP", "AVIF"])
def test_many_pixels_in_few_bytes_are_refused_before_they_are_decoded(format: str) -> None:
    options: dict[str, object] = {"speed": 10} if format == "AVIF" else {"lossless": True}
    data = blank(format, 3000, **options)
    assert len(data) < 2000
    with pytest.raises(InvalidInput, match=r"3000x3000 in \d+ bytes, more than the allowed 1000"):
        decoder.decode(data)
    with pytest.raises(InvalidInput) as error:
        ImageDecoder(32, 32, max_pixels_per_byte=1).decode(blank("PNG", 2100))
    assert error.value.bound == "image_pixels_per_byte"


def test_a_plain_jpeg_without_its_image_is_refused_too() -> None:
    data = blank("JPEG", 64)
    empty = data.replace(struct.pack(">HH", 64, 64), struct.pack(">HH", 4400, 4400))
    with pytest.raises(InvalidInput, match="pixels per byte"):
        decoder.decode_if_fast(empty)


def test_blank_pages_of_a_scanner_pass() -> None:
    page = encode(Image.new("1", (2480, 1600)), "PNG")
    assert len(page) < 1000 and decoder.decode(page).size == (2480, 1600)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "AVIF"])
def test_of_an_animation_only_the_first_frame_is_decoded(format: str) -> None:
    many = decoder.decode(animated(format, 60))
    one = decoder.decode(encode(FRAME, format))
    assert many.size == (64, 64)
    assert np.abs(many.pixels.astype(int) - one.pixels).mean() < 12  # lossy, but the same frame


@pytest.mark.parametrize(
    "data",
    [
        bmp_of(1000, b"\1\2" * 10_000),
        bmp_of(8, b"\0\2\0\0" * 1700 + b"\0\1"),
        bmp_of(8, b"\0\0" * 3000, compression=2),
        encode(smooth(), "AVIF"),
        encode(FRAME, "GIF", comment=b"x" * 200) + bytes(300_000),
    ],
    ids=["BMP of runs", "BMP of steps", "BMP of 4 bits", "AVIF", "long GIF"],
)
def test_what_takes_unknown_time_is_left_to_the_process(data: bytes) -> None:
    postponed = decoder.decode_if_fast(data)
    assert isinstance(postponed, Postponed) and postponed.expected_ms > SLOW_MS
    assert decoder.decode_if_small(data) is None


def test_arithmetic_coding_counts_by_the_byte() -> None:
    data = encode(np.asarray(FRAME.resize((1600, 1600))), "JPEG", quality=95, optimize=True)
    frame = data.index(b"\xff\xc0")
    coded = data[: frame + 1] + b"\xc9" + data[frame + 2 :] + bytes(2_000_000)
    assert isinstance(decoder.decode_if_fast(coded), Postponed)


@pytest.mark.parametrize(
    "data",
    [
        png_of(64, 64, bytes(64 * 385), 16, 2),
        png_of(64, 64, bytes(64 * 9), 1, 0),
        png_of(64, 64, bytes(64 * 64 * 8), 8, 2, interlaced=1),
        png_of(8, 8, bytes(8_000_000), 8, 2),  # far more data than pixels
        png_with([(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(2**20)))] * 7),
        png_with([(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**22)))]),
        encode(smooth(), "JPEG", restart_marker_blocks=1),
        encode(Image.fromarray(smooth()).convert("CMYK"), "JPEG"),
        encode(smooth(), "JPEG") + b"<script>alert(1)</script>" + encode(smooth()),
        encode(smooth(), "JPEG", icc_profile=bytes(500_000)),
        encode(smooth(), "JPEG", exif=b"Exif\0\0" + exif_of(6) + bytes(60_000)),
        with_scans(32, 64),
    ],
    ids=[
        "16 bits", "1 bit", "interlaced", "too much data", "packed texts", "packed profile",
        "restart markers", "CMYK", "polyglot", "large profile", "large EXIF", "scans",
    ],
)  # fmt: skip
def test_odd_but_harmless_files_are_decoded_within_a_moment(data: bytes) -> None:
    started = time.perf_counter()
    assert isinstance(decoder.decode_if_fast(data), DecodedImage)
    assert time.perf_counter() - started < 0.5  # in truth 1 ms


@pytest.mark.parametrize("scans", [33, 1000])
def test_too_many_scans_are_refused_and_counted(scans: int) -> None:
    with pytest.raises(InvalidInput, match="more than 32 scans") as error:
        decoder.decode(with_scans(scans))
    assert error.value.bound == "image_scans"
    assert ImageDecoder(32, 32, max_scans=1000).decode(with_scans(scans)).size == (16, 16)


def test_a_frame_larger_than_its_screen_counts_by_the_frame() -> None:
    data = bytearray(encode(Image.new("P", (64, 64)), "GIF"))
    data[6:10] = struct.pack("<HH", 1, 1)
    assert decoder.decode(bytes(data)).size == (64, 64)
    at = data.index(b",", 13)
    data[at + 5 : at + 9] = struct.pack("<HH", 65_535, 65_535)
    with pytest.raises(InvalidInput, match="more than the allowed 50000000 pixels"):
        decoder.decode(bytes(data))


@pytest.mark.parametrize(
    "make",
    [
        lambda: blank("WEBP", 7100, lossless=True),
        lambda: png_with([(b"abCd", b"")] * 10_000),
        lambda: encode(smooth(), "JPEG")[:2] + segment(0xFE, b"") * 1000,
    ],
    ids=["pixels", "chunks", "segments"],
)
def test_every_bound_has_a_name(make: Callable[[], bytes]) -> None:
    with pytest.raises(InvalidInput) as error:
        decoder.decode(make())
    assert error.value.bound in ("image_pixels", "image_parts")


def test_an_image_of_two_formats_is_what_it_begins_with() -> None:
    both = encode(smooth(), "GIF") + encode(np.zeros((8, 8, 3), np.uint8), "JPEG")
    assert decoder.decode(both).size == (32, 32)
    with Image.open(io.BytesIO(both)) as image:
        assert image.format == "GIF"
