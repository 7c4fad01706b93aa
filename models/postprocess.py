"""Turn the outputs of an exit head into segmentation masks."""

import colorsys
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Share of the colour circle between neighbouring classes; the golden angle keeps hues far apart.
GOLDEN_ANGLE = 0.61803398875


def mask_png(logits: NDArray[np.float32], size: tuple[int, int]) -> bytes:
    """Encode a mask as a PNG whose pixel values are class ids, with a colour for each class.

    Args:
        logits: Logits of every pixel, (H, W, C), with C at most 256.
        size: Width and height of the image, and of the mask.
    """
    mask = Image.fromarray(logits.argmax(-1).astype(np.uint8), "P")
    mask.putpalette(_palette(logits.shape[-1]))
    file = io.BytesIO()
    mask.resize(size, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def _palette(num_classes: int) -> bytes:
    """Return red, green and blue of each class; class 0, usually the background, is black."""
    hues = (GOLDEN_ANGLE * index % 1 for index in range(num_classes - 1))
    colours = [(0.0, 0.0, 0.0), *(colorsys.hsv_to_rgb(hue, 0.75, 0.95) for hue in hues)]
    return bytes(round(255 * channel) for colour in colours for channel in colour)
