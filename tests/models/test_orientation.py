import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.orientation import MAX_TAGS, UPRIGHT, decode_raw_profile, read_orientation
from tests.models.image_files import exif_of


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_orientation_is_read_in_both_orders_and_all_types(
    order: str, kind: int, orientation: int
) -> None:
    exif = exif_of(orientation, kind, order)
    assert read_orientation(exif, None) == orientation
    assert read_orientation(b"Exif\0\0" + exif, b'tiff:Orientation="4"') == orientation


def test_upright_and_unknown_orientations_are_none() -> None:
    assert [read_orientation(exif_of(each), None) for each in (0, 1, 9, 200)] == [None] * 4
    assert read_orientation(None, None) is None


@pytest.mark.parametrize("xmp", [b'x tiff:Orientation="6" y', b"<tiff:Orientation>6</>"])
def test_xmp_counts_where_exif_names_none(xmp: bytes) -> None:
    other = b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHI", 0x0110, 3, 1) + bytes(8)
    assert read_orientation(None, xmp) == read_orientation(other, xmp) == 6
    assert read_orientation(exif_of(1), xmp) is None


@given(st.binary(max_size=100))
def test_damaged_exif_is_an_upright_image(data: bytes) -> None:
    for mark in (b"", b"II*\0", b"MM\0*", b"II*\0\x08\0\0\0\xff\xff"):
        assert read_orientation(mark + data, None) in (None, *UPRIGHT)


def test_only_the_first_tags_are_read() -> None:
    def of(tags: int) -> bytes:
        others = struct.pack("<HHI4x", 0x0110, 3, 1) * (tags - 1)
        return b"II*\0\x08\0\0\0" + struct.pack("<H", tags) + others + exif_of(6)[10:]

    assert read_orientation(of(MAX_TAGS), None) == 6
    assert read_orientation(of(MAX_TAGS + 1), None) is None


def test_a_raw_profile_is_hexadecimal_behind_three_lines() -> None:
    exif = exif_of(6)
    assert decode_raw_profile(b"\nexif\n  26\n" + exif.hex().encode() + b"\n") == exif
    assert decode_raw_profile(b"\nexif\n  26\nno digits") is None
    assert decode_raw_profile(b"") == b""
