"""Colours of other spaces than sRGB, by an ICC profile of three primaries or a PNG's gamma.

Networks are trained on sRGB. Only what a camera or a browser writes is read: profiles with a matrix
and a curve for each channel. Tables of colours and profiles of printers are not, since they take
long to read and no photo that a client sends has them. No foreign code parses a profile.
"""

import functools
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_PROFILE_BYTES = 64 * 1024  # Adobe RGB and Display P3 take about 550 bytes
MAX_TAGS, MAX_CURVE = 100, 4096
ENCODED_STEPS = 2**16
SRGB_GAMMA = 0.45455  # what encoders write for sRGB, though its curve is no power
SAME_LEVELS = 2  # of 255: a profile that changes no colour by more is sRGB
Curve = NDArray[np.float64]
"""Light of each of the 256 levels, on a scale of 0 to 1, (256,)."""

# From linear sRGB to XYZ as profiles have it, adapted to D50.
SRGB_TO_XYZ = np.array(
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)


class Profile(NamedTuple):
    """What an image file says of its colours.

    Attributes:
        icc: An ICC profile; None without one.
        gamma: A PNG's gAMA: the exponent of its levels; None without one.
    """

    icc: bytes | None = None
    gamma: float | None = None


class ColourSpace(NamedTuple):
    """How levels become linear sRGB.

    Attributes:
        light: Light of each level of each channel, (3, 256).
        matrix: From the channels' light to linear sRGB, (3, 3); None if the primaries are sRGB's.
    """

    light: NDArray[np.float32]
    matrix: NDArray[np.float32] | None

    def to_srgb(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert pixels (..., 3)."""
        light = np.stack([self.light[c][pixels[..., c]] for c in range(3)], -1)
        if self.matrix is not None:
            light = light @ self.matrix.T
        steps = (light.clip(0, 1) * np.float32(ENCODED_STEPS - 1) + np.float32(0.5)).astype(int)
        converted: NDArray[np.uint8] = _srgb_of_light()[steps]
        return converted


@functools.lru_cache(maxsize=32)
def space_of(profile: Profile) -> ColourSpace | None:
    """Return the colour space of a file; None for sRGB, and for profiles that are not read."""
    if profile.icc is not None:
        try:
            space = _read_icc(profile.icc)
        except (struct.error, IndexError, ValueError, OverflowError):
            return None
    elif profile.gamma is not None and 0.05 <= profile.gamma <= 5:
        if is_srgb_gamma(profile.gamma):
            return None
        levels = np.arange(256) / 255
        space = ColourSpace(np.tile(levels ** (1 / profile.gamma), (3, 1)).astype("f4"), None)
    else:
        return None
    return None if space is None or _is_srgb(space) else space


def is_srgb_gamma(gamma: float) -> bool:
    """Whether a PNG's gamma is what encoders write for sRGB."""
    return abs(gamma - SRGB_GAMMA) < 0.02


def _is_srgb(space: ColourSpace) -> bool:
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), -1).astype(np.uint8)
    return int(np.abs(space.to_srgb(grid).astype(int) - grid).max()) <= SAME_LEVELS


@functools.cache
def _srgb_of_light() -> NDArray[np.uint8]:
    light = np.linspace(0, 1, ENCODED_STEPS)
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (coded * 255).round().astype(np.uint8)


def _read_icc(icc: bytes) -> ColourSpace | None:
    """Read a profile; `struct.error`, IndexError or ValueError if it is damaged."""
    if len(icc) > MAX_PROFILE_BYTES or icc[16:24] != b"RGB XYZ " or icc[36:40] != b"acsp":
        return None
    (count,) = struct.unpack_from(">I", icc, 128)
    tags: dict[bytes, bytes] = {}
    for index in range(min(count, MAX_TAGS)):
        name, start, size = struct.unpack_from(">4sII", icc, 132 + 12 * index)
        tags[name] = icc[start : start + size]
    names = [(each + b"XYZ", each + b"TRC") for each in (b"r", b"g", b"b")]
    if not all(name in tags for pair in names for name in pair):
        return None
    to_xyz = np.array([_read_xyz(tags[name]) for name, _ in names]).T  # (3, 3), a column a channel
    light = np.stack([_read_curve(tags[name]) for _, name in names])
    if not (np.isfinite(light).all() and np.isfinite(to_xyz).all()):
        return None
    matrix = np.linalg.solve(SRGB_TO_XYZ, to_xyz).astype(np.float32)
    return ColourSpace(light.clip(0, 1).astype(np.float32), matrix)


def _read_xyz(tag: bytes) -> tuple[float, ...]:
    return tuple(value / 65536 for value in struct.unpack_from(">3i", tag, 8))


def _read_curve(tag: bytes) -> Curve:
    levels = np.arange(256) / 255
    if tag[:4] == b"para":
        return _parametric(tag, levels)
    if tag[:4] != b"curv":
        raise ValueError("the curve is of another type")
    (count,) = struct.unpack_from(">I", tag, 8)
    if count == 0:
        return levels
    if count == 1:
        return np.asarray(levels ** (struct.unpack_from(">H", tag, 12)[0] / 256))
    if count > MAX_CURVE:
        raise ValueError("the curve has too many points")
    points = np.array(struct.unpack_from(f">{count}H", tag, 12)) / 65535
    return np.interp(levels, np.linspace(0, 1, count), points)


def _parametric(tag: bytes, x: Curve) -> Curve:
    """ICC's functions 0 to 4: powers, from the third on with a line at the dark end."""
    (kind,) = struct.unpack_from(">H", tag, 8)
    number = (1, 3, 4, 5, 7)[kind]
    g, *rest = (value / 65536 for value in struct.unpack_from(f">{number}i", tag, 12))
    a, b = rest[:2] if kind else (1.0, 0.0)
    with np.errstate(all="ignore"):
        power: Curve = np.where(a * x + b > 0, np.abs(a * x + b), 0.0) ** g
        if kind == 0:
            return power
        if kind in (1, 2):
            offset = rest[2] if kind == 2 else 0.0
            return np.where(x >= -b / a if a else x < 0, power + offset, offset)
        c, d = rest[2:4]
        e, f = rest[4:6] if kind == 4 else (0.0, 0.0)
        return np.where(x >= d, power + e, c * x + f)
