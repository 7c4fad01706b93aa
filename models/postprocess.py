"""From a head's outputs to what a prediction shows: probabilities and masks."""

import colorsys
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GOLDEN_ANGLE = 0.61803398875  # of the colour circle: hues of neighbouring classes lie far apart


def probabilities(log_probs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the classes (C,); of a segmentation the mean over its pixels (P, C), a class's share."""
    probs: NDArray[np.float32] = np.exp(log_probs)
    return probs if probs.ndim == 1 else probs.mean(0)


def mask_png(logits: NDArray[np.float32], size: tuple[int, int]) -> bytes:
    """A PNG whose pixel values are class ids and whose palette tells them apart.

    Args:
        logits: (H, W, C), C at most 256.
        size: Width and height of the mask, those of the image.
    """
    mask = Image.fromarray(logits.argmax(-1).astype(np.uint8), "P")
    mask.putpalette(_palette(logits.shape[-1]))
    file = io.BytesIO()
    mask.resize(size, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def _palette(num_classes: int) -> bytes:
    """Red, green and blue of each class; class 0, by custom the background, is black."""
    hues = (GOLDEN_ANGLE * index % 1 for index in range(num_classes - 1))
    colours = [(0.0, 0.0, 0.0), *(colorsys.hsv_to_rgb(hue, 0.75, 0.95) for hue in hues)]
    return bytes(round(255 * part) for colour in colours for part in colour)
