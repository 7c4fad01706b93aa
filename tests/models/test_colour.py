import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from models.colour import MAX_PROFILE_BYTES, SRGB_TO_XYZ, Profile, space_of
from models.images import DecodedImage, ImageDecoder
from tests.models.image_files import Pixels, chunk, encode, segment, smooth

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
P3_TO_XYZ = np.array(
    [[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]]
)
SRGB_NUMBERS = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
SRGB_CURVE = struct.pack(
    ">4s4xH2x5i", b"para", 3, *(round(x * 65536) for x in SRGB_NUMBERS)
)  # fmt: skip
decoder = ImageDecoder(32, 32)


def gamma_curve(gamma: float) -> bytes:
    return struct.pack(">4s4xIH2x", b"curv", 1, round(gamma * 256))


def icc(to_xyz: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", curve: bytes) -> bytes:
    """Make a profile of three primaries."""
    tags = [
        (b"%sXYZ" % name, struct.pack(">4s4x3i", b"XYZ ", *(round(x * 65536) for x in column)))
        for name, column in zip((b"r", b"g", b"b"), to_xyz.T, strict=True)
    ]
    tags += [(b"%sTRC" % name, curve) for name in (b"r", b"g", b"b")]
    tags.append((b"wtpt", struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)))
    tags.append((b"desc", struct.pack(">4s4xII12s", b"mluc", 0, 12, b"")))
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, data in tags:
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data
    size = start + len(body)
    head = struct.pack(">I4xI4s4s4s12x4s", size, 0x04200000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    head += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def by_littlecms(pixels: Pixels, profile: bytes) -> Pixels:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.createProfile("sRGB")
    done = ImageCms.profileToProfile(Image.fromarray(pixels), source, target, renderingIntent=1)
    assert done is not None
    return np.asarray(done)


def noise(side: int = 32) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "profile",
    [
        icc(P3_TO_XYZ, SRGB_CURVE),
        icc(P3_TO_XYZ, gamma_curve(1.8)),
        icc(SRGB_TO_XYZ, gamma_curve(1)),
    ],
    ids=["Display P3", "gamma 1.8", "linear"],
)
def test_colours_are_converted_as_littlecms_does(profile: bytes) -> None:
    space = space_of(Profile(profile))
    assert space is not None
    off = np.abs(space.to_srgb(noise()).astype(int) - by_littlecms(noise(), profile))
    assert off.max() <= 3 and off.mean() < 0.5


def test_a_curve_of_points_is_read_as_its_function() -> None:
    points = (np.linspace(0, 1, 1024) ** 1.8 * 65535).round().astype(int).tolist()
    table = struct.pack(">4s4xI1024H", b"curv", 1024, *points)
    by_points, by_gamma = (
        space_of(Profile(icc(P3_TO_XYZ, curve))) for curve in (table, gamma_curve(1.8))
    )
    assert by_points is not None and by_gamma is not None
    off = by_points.to_srgb(noise()).astype(int) - by_gamma.to_srgb(noise())
    assert np.abs(off).max() <= 2


def test_srgb_changes_nothing() -> None:
    assert space_of(Profile(SRGB)) is None
    assert space_of(Profile(icc(SRGB_TO_XYZ, SRGB_CURVE))) is None
    assert space_of(Profile()) is None
    tagged, plain = encode(smooth(), icc_profile=SRGB), encode(smooth())
    assert np.array_equal(decoder.decode(tagged).pixels, decoder.decode(plain).pixels)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_a_profile_is_found_in_every_format(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {"quality": 100}
    plain = encode(smooth(), format, **options)
    tagged = encode(smooth(), format, icc_profile=icc(P3_TO_XYZ, gamma_curve(1.8)), **options)
    space = space_of(Profile(icc(P3_TO_XYZ, gamma_curve(1.8))))
    assert space is not None
    expected = space.to_srgb(decoder.decode(plain).pixels)
    off = np.abs(decoder.decode(tagged).pixels.astype(int) - expected)
    assert off.max() <= 2 and decoder.decode_if_small(tagged) is None  # not on the event loop


@pytest.mark.parametrize("gamma", [1.0, 1 / 1.8, 0.45455, 0.0, 900.0])
def test_a_gamma_of_a_png_is_converted(gamma: float) -> None:
    plain = encode(smooth())
    at = plain.index(b"IDAT") - 4
    told = plain[:at] + chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000))) + plain[at:]
    pixels, before = decoder.decode(told).pixels, decoder.decode(plain).pixels
    if gamma in (1.0, 1 / 1.8):
        light = (before / 255) ** (1 / gamma)
        coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        assert np.abs(pixels - coded * 255).max() <= 1
    else:  # near that of sRGB, or none at all
        assert np.array_equal(pixels, before)
        assert decoder.decode_if_small(told) is not None or gamma != 0.45455


def test_a_profile_that_is_not_read_changes_nothing() -> None:
    good = icc(P3_TO_XYZ, gamma_curve(1.8))
    long = good + bytes(MAX_PROFILE_BYTES)
    for odd in (
        b"",
        bytes(400),
        good[:200],
        long,
        good.replace(b"RGB ", b"CMYK", 1),
        bytes(20_000),
    ):
        assert space_of(Profile(odd)) is None
        data = encode(smooth(), "JPEG")
        tagged = data[:2] + segment(0xE2, b"ICC_PROFILE\0\1\1" + odd[:60_000]) + data[2:]
        assert isinstance(decoder.decode_if_fast(tagged), DecodedImage)


@settings(max_examples=300, deadline=None, database=None)
@given(st.data())
def test_a_damaged_profile_is_read_or_passed_over(data: st.DataObject) -> None:
    damaged = bytearray(icc(P3_TO_XYZ, SRGB_CURVE if data.draw(st.booleans()) else gamma_curve(2)))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    space = space_of(Profile(bytes(damaged)))
    if space is not None:
        assert space.to_srgb(noise()).shape == (32, 32, 3)
