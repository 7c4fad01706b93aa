"""Corruptions of real inputs: noise, blur, JPEG and low contrast; cut and misspelt texts."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

SEVERITIES = (1, 2, 3, 4, 5)
SIDE = 32  # side length of the images that the levels are made for
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHORTEST_MISSPELT = 4  # letters; a slip in a shorter word often makes another word

_NOISE_DEVIATIONS = (0.04, 0.06, 0.08, 0.09, 0.10)  # of shades from 0 to 1
_BLUR_DEVIATIONS = (0.4, 0.6, 0.7, 0.8, 1.0)  # pixels
_JPEG_QUALITIES = (65, 50, 35, 25, 15)
_CONTRASTS = (0.75, 0.5, 0.4, 0.3, 0.15)  # share that remains


def corrupt(image: Image.Image, kind: str, severity: int, rng: np.random.Generator) -> Image.Image:
    """Corrupt an image; return it as RGB in its size.

    The visible effect depends on the severity, not on the size: on larger images the blur is wider
    in proportion, noise and compression are stronger by the square root of it.

    Args:
        image: Image of any mode.
        kind: One of `CORRUPTIONS`.
        severity: 1 to 5.
        rng: Generator of the noise.

    Raises:
        ValueError: If there is no such kind or severity.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"no corruption is called {kind!r}; there are {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"the severity of {kind} is {severity}; give 1 to {SEVERITIES[-1]}")
    rgb = image.convert("RGB")
    return CORRUPTIONS[kind](rgb, severity - 1, _scale(rgb), rng)


def corrupted_file(data: bytes, kind: str, severity: int, rng: np.random.Generator) -> bytes:
    """Corrupt an image file; return a PNG, or a JPEG for the kind `jpeg`.

    Raises:
        ValueError: If there is no such kind or severity.
    """
    with Image.open(io.BytesIO(data)) as image:
        if kind == "jpeg" and severity in SEVERITIES:
            return _jpeg_file(image.convert("RGB"), severity - 1, _scale(image))
        corrupted = corrupt(image, kind, severity, rng)
    file = io.BytesIO()
    corrupted.save(file, "PNG")
    return file.getvalue()


def shorter(text: str, words: int) -> str:
    """The first words of a text."""
    return " ".join(text.split()[:words])


def longer(texts: Sequence[str], labels: Sequence[Any], times: int) -> list[str]:
    """Join each text with the ones of its class that follow it, `times` in all, (N,).

    After the last text of a class its first one follows.
    """
    members: dict[Any, list[int]] = {}
    places = []
    for row, label in enumerate(labels):
        rows = members.setdefault(label, [])
        places.append(len(rows))
        rows.append(row)
    joined = []
    for place, label in zip(places, labels, strict=True):
        rows = members[label]
        joined.append(" ".join(texts[rows[(place + k) % len(rows)]] for k in range(times)))
    return joined


def misspelt(text: str, share: float, rng: np.random.Generator) -> str:
    """Misspell a share of the longer words of a text."""

    def slip(match: re.Match[str]) -> str:
        return _slipped(match[0], rng) if rng.random() < share else match[0]

    return re.sub(rf"[^\W\d_]{{{SHORTEST_MISSPELT},}}", slip, text)


def _slipped(word: str, rng: np.random.Generator) -> str:
    """Leave out, double, replace or swap one letter."""
    at = int(rng.integers(1, len(word) - 1))  # people seldom miss the first
    before, letter, after = word[:at], word[at], word[at + 1 :]
    wrong = LETTERS[int(rng.integers(len(LETTERS)))]
    swapped = after[0] + letter + after[1:]
    middles = (after, letter * 2 + after, wrong + after, swapped)
    return before + middles[int(rng.integers(len(middles)))]


def _scale(image: Image.Image) -> float:
    return max(min(image.size) / SIDE, 1.0)


def _noise(image: Image.Image, level: int, scale: float, rng: np.random.Generator) -> Image.Image:
    deviation = 255 * _NOISE_DEVIATIONS[level] * np.sqrt(scale)
    shades = np.asarray(image, np.float64)  # (H, W, 3)
    return _image(shades + rng.normal(0.0, deviation, shades.shape))


def _blur(image: Image.Image, level: int, scale: float, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(scale * _BLUR_DEVIATIONS[level]))


def _jpeg(image: Image.Image, level: int, scale: float, rng: np.random.Generator) -> Image.Image:
    with Image.open(io.BytesIO(_jpeg_file(image, level, scale))) as compressed:
        return compressed.convert("RGB")


def _contrast(
    image: Image.Image, level: int, scale: float, rng: np.random.Generator
) -> Image.Image:
    shades = np.asarray(image, np.float64)  # (H, W, 3)
    mean = shades.mean((0, 1))
    return _image((shades - mean) * _CONTRASTS[level] + mean)


def _image(shades: np.ndarray[Any, np.dtype[np.float64]]) -> Image.Image:
    return Image.fromarray(shades.round().clip(0, 255).astype(np.uint8))


def _jpeg_file(image: Image.Image, level: int, scale: float) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=max(round(_JPEG_QUALITIES[level] / scale**0.5), 1))
    return file.getvalue()


_Corrupt = Callable[[Image.Image, int, float, np.random.Generator], Image.Image]
CORRUPTIONS: dict[str, _Corrupt] = {
    "noise": _noise,
    "blur": _blur,
    "jpeg": _jpeg,
    "contrast": _contrast,
}
