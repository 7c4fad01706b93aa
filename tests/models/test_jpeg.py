import io
import struct
import time
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.jpeg import (
    MAX_PLAIN_SEGMENTS,
    MAX_SEGMENTS,
    count_scan_markers,
    count_scans,
    may_be_arithmetic,
    plain_size,
    split_metadata,
)
from models.orientation import Metadata
from tests.models.image_files import encode, exif_of, segment, smooth, with_scans

JPEG = encode(smooth(20, 30), "JPEG")
MARKS = b"\xff\xda" * 500


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def inserted(*segments: bytes) -> bytes:
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1}, {"optimize": True}, {"comment": b"a ship"}],
)
def test_a_plain_file_tells_its_size(options: dict[str, Any]) -> None:
    assert plain_size(encode(smooth(20, 30), "JPEG", **options)) == (30, 20)
    assert plain_size(encode(Image.fromarray(smooth(20, 30)).convert("L"), "JPEG")) == (30, 20)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff\xd9",
        encode(smooth()),
        encode(smooth(), "JPEG", progressive=True),
        encode(smooth(), "JPEG", exif=rotated()),
        encode(smooth(), "JPEG", icc_profile=b"profile"),
        encode(smooth(), "JPEG", xmp=b"<x/>"),
        encode(Image.fromarray(smooth()).convert("CMYK"), "JPEG"),
        JPEG[:-1],
        JPEG[:60] + b"\xff\xd9",
        JPEG + b"film",
        inserted(*[segment(0xFE, b"")] * MAX_PLAIN_SEGMENTS),
        inserted(b"\0"),
        JPEG.replace(struct.pack(">HH", 20, 30), bytes(4)),
    ],
)
def test_every_other_file_is_not_plain(data: bytes) -> None:
    assert plain_size(data) is None


@settings(max_examples=200, deadline=None, database=None)
@given(st.data())
def test_any_bytes_are_plain_or_not(data: st.DataObject) -> None:
    damaged = bytearray(JPEG)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(JPEG) - 1))] = data.draw(st.integers(0, 255))
    size = plain_size(bytes(damaged))
    assert size is None or min(size) > 0


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_both_decoders_give_the_same_pixels(subsampling: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    for quality in (30, 75, 95):
        data = encode(image, "JPEG", subsampling=subsampling, quality=quality)
        fast = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
        with Image.open(io.BytesIO(data)) as opened:
            assert np.abs(np.asarray(opened).astype(int) - fast).max() <= 2


def test_metadata_are_taken_out_and_what_turns_the_image_is_kept() -> None:
    exif, xmp = exif_of(6), b'<x tiff:Orientation="3"/>'
    odd = inserted(
        segment(0xE1, b"Exif\0\0" + exif),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp),
        segment(0xE2, b"ICC_PROFILE\0\1\1" + MARKS),
        segment(0xED, b"Photoshop 3.0\0"),
        segment(0xFE, b"\xff\xd9 a comment"),
    )
    metadata = split_metadata(odd)
    assert (metadata.file, metadata.exif, metadata.xmp) == (JPEG, exif, xmp)
    assert split_metadata(JPEG) == Metadata(JPEG, None, None)
    adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0\1")  # tells the colours
    assert split_metadata(inserted(adobe)).file == inserted(adobe)


def test_exif_data_that_continue_are_joined_and_bounded() -> None:
    exif = exif_of(6)
    halves = (segment(0xE1, b"Exif\0\0" + part) for part in (exif[:9], exif[9:]))
    assert split_metadata(inserted(*halves)).exif == exif
    many = [segment(0xE1, b"Exif\0\0" + bytes(65_000))] * 500
    assert len(split_metadata(inserted(*many)).exif or b"") < 2 * 2**20


def test_a_profile_in_parts_is_joined_and_bounded() -> None:
    parts = [segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 3]) + b"abc") for n in (1, 2, 3)]
    assert split_metadata(inserted(*parts)).icc == b"abc" * 3
    many = [segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000))] * 500
    assert len(split_metadata(inserted(*many)).icc or b"") < 2 * 2**16


@pytest.mark.parametrize("marker", [0xC9, 0xCA])
def test_arithmetic_coding_is_seen(marker: int) -> None:
    frame = JPEG.index(b"\xff\xc0")
    assert not may_be_arithmetic(JPEG)
    assert may_be_arithmetic(JPEG[: frame + 1] + bytes([marker]) + JPEG[frame + 2 :])


def test_too_many_segments_are_refused() -> None:
    with pytest.raises(ValueError, match=f"more than {MAX_SEGMENTS} segments"):
        split_metadata(inserted(*[segment(0xFE, b"")] * MAX_SEGMENTS))


def test_a_cut_off_header_is_left_to_the_decoder() -> None:
    for cut in range(2, 200):
        assert split_metadata(JPEG[:cut]).file == JPEG[:cut]


@pytest.mark.parametrize("scans", [1, 2, 32])
def test_scans_are_counted(scans: int) -> None:
    data = with_scans(scans)
    assert count_scans(data, 32) == count_scan_markers(data) == scans
    for size in (20_000, 20_001):  # at even places and at odd ones
        longer = data[:2] + segment(0xFE, bytes(size)) + data[2:]
        assert count_scans(longer, 32) == count_scan_markers(longer) == scans
    # Fill bytes before a marker, and a segment full of markers, change nothing.
    assert count_scans(data.replace(b"\xff\xda", b"\xff\xff\xff\xda"), 32) == scans
    assert count_scans(data[:2] + segment(0xFE, b"\xff\xd9" * 9) + data[2:], 32) == scans


def test_counting_stops_above_the_most() -> None:
    assert count_scans(with_scans(40), 8) == 9
    assert count_scans(b"\xff\xd8" + segment(0xFE, b"") * 2_000, 8) == 9


def test_what_only_looks_like_scans_is_not_counted() -> None:
    assert count_scans(JPEG + MARKS, 32) == 1  # a film after the image, as phones store it
    assert count_scans(inserted(segment(0xE1, b"Exif" + MARKS)), 32) == 1


def test_scans_are_counted_in_time_linear_in_the_size() -> None:
    scans = segment(0xDA, bytes(6)) * 33
    for filler in (segment(0xFE, b""), b"\xff\x00", b"\xff\xff"):
        data = b"\xff\xd8" + filler * 2_000_000 + scans
        started = time.perf_counter()
        assert count_scans(data, 32) == 33
        assert time.perf_counter() - started < 1
