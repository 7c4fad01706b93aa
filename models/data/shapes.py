"""A synthetic set for segmentation: shapes before textured backgrounds, some plain, some hard."""

import numpy as np
from numpy.typing import NDArray

from models.data.dataset import DataConfig, Dataset, Split

Array = NDArray[np.float32]

CLASSES = ("background", "circle", "square", "triangle", "star")
# Of each shape from class 1 on: how many tips it has, and how far in the outline comes between two
# of them, as a share of how far out they are.
TIPS = np.array([32, 4, 3, 5])
VALLEYS = np.array([np.cos(np.pi / 32), np.cos(np.pi / 4), np.cos(np.pi / 3), 0.45])
# The way in which its colour tends to differ from the background's, more or less.
COLOURS = np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]], np.float32) / 3**0.5

TRAIN_ROWS, CALIBRATION_ROWS, TEST_ROWS = 4000, 600, 1000
IMAGE_SIZE = 64
MAX_SHAPES = 5
ROWS_AT_ONCE = 50


def load_shapes(config: DataConfig) -> Dataset:
    """Draw 4000 images to train, 600 to calibrate and 1000 to test.

    Each image has a difficulty of its own: the harder, the more noise and texture, the softer the
    edges and the closer the colours of shapes and background. The three splits are drawn apart: the
    size of one changes no other.

    Args:
        config: Its `calibration_size`, `image_size` (64 unless given) and `seed` count.

    Returns:
        Images (N, H, W, 3) and masks (N, H, W).

    Raises:
        ValueError: If the image size is no multiple of 8.
    """
    size = IMAGE_SIZE if config.image_size is None else config.image_size
    if size % 8:
        raise ValueError(f"image_size is {size}; give a multiple of 8, such as {IMAGE_SIZE}")
    held = CALIBRATION_ROWS if config.calibration_size is None else config.calibration_size
    train, calibration, test = (
        _draw_split(rows, size, np.random.default_rng([config.seed, stream]))
        for stream, rows in enumerate((TRAIN_ROWS, held, TEST_ROWS))
    )
    return Dataset("segmentation", CLASSES, train, calibration, test)


def _draw_split(rows: int, size: int, rng: np.random.Generator) -> Split:
    parts = [
        _draw(min(ROWS_AT_ONCE, rows - start), size, rng) for start in range(0, rows, ROWS_AT_ONCE)
    ]
    return Split(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _draw(rows: int, size: int, rng: np.random.Generator) -> Split:
    """Some images and their masks; lengths are in half sides, colours from 0 to 1."""

    def uniform(low: float, high: float, *shape: int) -> Array:
        drawn: Array = rng.uniform(low, high, (rows, *shape)).astype(np.float32)
        return drawn

    centres: Array = np.linspace(1 / size - 1, 1 - 1 / size, size, dtype=np.float32)
    across, down = centres[None, :], centres[:, None]  # (1, W), (H, 1)
    hardness = uniform(0, 1, 1, 1)
    contrast = 0.6 - 0.45 * hardness
    softness = (0.5 + 2.5 * hardness * uniform(0, 1, 1, 1)) * 2 / size
    ground = uniform(0.35, 0.65, 1, 1, 3)
    images = np.tile(ground, (1, size, size, 1))
    masks = np.zeros((rows, size, size), np.int64)
    wanted = rng.integers(2, MAX_SHAPES + 1, rows)
    for painted in range(MAX_SHAPES):
        kinds = rng.integers(0, len(TIPS), rows)
        radius = uniform(0.25, 0.7, 1, 1)
        radius[wanted <= painted] = 0.0
        x, y, angle = uniform(-0.8, 0.8, 1, 1), uniform(-0.8, 0.8, 1, 1), uniform(0, 7, 1, 1)
        distances = _distances(across - x, down - y, angle, radius, kinds)
        masks = np.where(distances < 0, 1 + kinds[:, None, None], masks)
        stray = (0.2 + 0.6 * hardness)[..., None] * _directions(uniform(-1, 1, 1, 1, 3))
        colour = ground + contrast[..., None] * _directions(COLOURS[kinds][:, None, None] + stray)
        cover = (0.5 - distances / softness).clip(0, 1)[..., None]
        images += cover * (colour - images)
    for _ in range(2):
        angle, phase = uniform(0, 7, 1, 1), uniform(0, 7, 1, 1)
        steps = uniform(1, 25, 1, 1) * (across * np.cos(angle) + down * np.sin(angle))
        strength = (0.02 + 0.08 * hardness)[..., None] * uniform(0, 1, 1, 1, 3)
        images += strength * np.sin(steps + phase)[..., None]
    noise = rng.standard_normal(images.shape, np.float32)
    images += (0.02 + 0.16 * hardness * uniform(0, 1, 1, 1))[..., None] * noise
    return Split((images.clip(0, 1) * 255).round().astype(np.uint8), masks)


def _distances(
    across: Array, down: Array, angle: Array, radius: Array, kinds: NDArray[np.int64]
) -> Array:
    """How far pixels lie outside the outline of a shape, below 0 inside, (n, H, W).

    All shapes are stars: folded at their tips and valleys, the outline is one straight line.

    Args:
        across: From the shape's centre to the pixels, (n, 1, W).
        down: The same, (n, H, 1).
        angle: Of the first tip, in radians, (n, 1, 1).
        radius: Of the tips, (n, 1, 1); 0: there is no shape.
        kinds: Places in `TIPS`, (n,).
    """
    half = (np.pi / TIPS[kinds]).astype(np.float32)[:, None, None]  # from a tip to a valley
    valley = VALLEYS[kinds].astype(np.float32)[:, None, None]
    turned = (np.arctan2(down, across) - angle) / (2 * half)
    folded = np.abs(turned - np.rint(turned)) * 2 * half  # from the nearest tip
    reach = np.hypot(across, down)
    along, aside = 1 - valley * np.cos(half), valley * np.sin(half)  # from tip to valley
    length = np.hypot(along, aside)
    outside: Array = (
        aside * (reach * np.cos(folded) - radius) + along * reach * np.sin(folded)
    ) / length
    return np.where(radius > 0, outside, np.float32(9))


def _directions(vectors: Array) -> Array:
    """Vectors (..., 3) brought to length 1."""
    directions: Array = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return directions
