"""Draw a synthetic dataset for segmentation: shapes on textured backgrounds, from easy to hard."""

import numpy as np
from numpy.typing import NDArray

from models.data.dataset import DataConfig, Dataset, Split

Array = NDArray[np.float32]

CLASSES = ("background", "circle", "square", "triangle", "star")
# For each shape from class 1 on: number of tips, and radius between two tips as a share of the
# radius at the tips.
TIPS = np.array([32, 4, 3, 5])
VALLEYS = np.array([np.cos(np.pi / 32), np.cos(np.pi / 4), np.cos(np.pi / 3), 0.45])
# Direction in which each shape's colour tends to differ from the background's.
COLOURS = np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]], np.float32) / 3**0.5

TRAIN_ROWS, CALIBRATION_ROWS, TEST_ROWS = 4000, 600, 1000
IMAGE_SIZE = 64
MAX_SHAPES = 5
ROWS_AT_ONCE = 50  # bounds the memory of intermediate arrays


def load_shapes(config: DataConfig) -> Dataset:
    """Draw 4000 images for training, 600 for calibration, 1000 for test, and any to certify.

    Each image has its own difficulty. Harder images have more noise and texture, softer edges, and
    shapes whose colours are closer to the background. Each split has its own random stream, so the
    size of one does not change the others.

    Args:
        config: Only `calibration_size`, `certification_size`, `image_size` (64 by default) and
            `seed` are used.

    Returns:
        Images (N, H, W, 3) and masks (N, H, W).

    Raises:
        ValueError: If the image size is not a multiple of 8.
    """
    size = IMAGE_SIZE if config.image_size is None else config.image_size
    if size % 8:
        raise ValueError(f"image_size is {size}; give a multiple of 8, such as {IMAGE_SIZE}")
    held_out = CALIBRATION_ROWS if config.calibration_size is None else config.calibration_size
    train, calibration, test, certification = (
        _draw_split(rows, size, np.random.default_rng([config.seed, stream])) if rows else None
        for stream, rows in enumerate((TRAIN_ROWS, held_out, TEST_ROWS, config.certification_size))
    )
    assert train and calibration and test, "their sizes are above 0"
    return Dataset("segmentation", CLASSES, train, calibration, test, certification)


def _draw_split(rows: int, size: int, rng: np.random.Generator) -> Split:
    parts = [
        _draw(min(ROWS_AT_ONCE, rows - start), size, rng) for start in range(0, rows, ROWS_AT_ONCE)
    ]
    return Split(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _draw(rows: int, size: int, rng: np.random.Generator) -> Split:
    """Draw images and their masks; lengths are in half sides, colours from 0 to 1."""

    def uniform(low: float, high: float, *shape: int) -> Array:
        drawn: Array = rng.uniform(low, high, (rows, *shape)).astype(np.float32)
        return drawn

    centres: Array = np.linspace(1 / size - 1, 1 - 1 / size, size, dtype=np.float32)
    across, down = centres[None, :], centres[:, None]  # (1, W), (H, 1)
    hardness = uniform(0, 1, 1, 1)
    contrast = 0.6 - 0.45 * hardness
    softness = (0.5 + 2.5 * hardness * uniform(0, 1, 1, 1)) * 2 / size
    background = uniform(0.35, 0.65, 1, 1, 3)
    images = np.tile(background, (1, size, size, 1))
    masks = np.zeros((rows, size, size), np.int64)
    num_shapes = rng.integers(2, MAX_SHAPES + 1, rows)
    for index in range(MAX_SHAPES):
        kinds = rng.integers(0, len(TIPS), rows)
        radius = uniform(0.25, 0.7, 1, 1)
        radius[num_shapes <= index] = 0.0
        x, y, angle = uniform(-0.8, 0.8, 1, 1), uniform(-0.8, 0.8, 1, 1), uniform(0, 7, 1, 1)
        distances = _distances(across - x, down - y, angle, radius, kinds)
        masks = np.where(distances < 0, 1 + kinds[:, None, None], masks)
        jitter = (0.2 + 0.6 * hardness)[..., None] * _normalise(uniform(-1, 1, 1, 1, 3))
        direction = _normalise(COLOURS[kinds][:, None, None] + jitter)
        colour = background + contrast[..., None] * direction
        opacity = (0.5 - distances / softness).clip(0, 1)[..., None]
        images += opacity * (colour - images)
    for _ in range(2):  # two waves of texture
        angle, phase = uniform(0, 7, 1, 1), uniform(0, 7, 1, 1)
        wave = uniform(1, 25, 1, 1) * (across * np.cos(angle) + down * np.sin(angle))
        strength = (0.02 + 0.08 * hardness)[..., None] * uniform(0, 1, 1, 1, 3)
        images += strength * np.sin(wave + phase)[..., None]
    noise = rng.standard_normal(images.shape, np.float32)
    images += (0.02 + 0.16 * hardness * uniform(0, 1, 1, 1))[..., None] * noise
    return Split((images.clip(0, 1) * 255).round().astype(np.uint8), masks)


def _distances(
    across: Array, down: Array, angle: Array, radius: Array, kinds: NDArray[np.int64]
) -> Array:
    """Compute the signed distance of pixels to the outline of a shape, below 0 inside, (n, H, W).

    All shapes are stars. Between a tip and a valley the outline is a straight line, so mirroring
    every pixel into one such sector leaves the distance to a single line.

    Args:
        across: Horizontal distance from the shape's centre to the pixels, (n, 1, W).
        down: Vertical distance, (n, H, 1).
        angle: Angle of the first tip in radians, (n, 1, 1).
        radius: Radius of the tips, (n, 1, 1); 0: there is no shape.
        kinds: Indices into `TIPS`, (n,).
    """
    sector = (np.pi / TIPS[kinds]).astype(np.float32)[:, None, None]  # angle from tip to valley
    valley = VALLEYS[kinds].astype(np.float32)[:, None, None]
    turns = (np.arctan2(down, across) - angle) / (2 * sector)
    folded = np.abs(turns - np.rint(turns)) * 2 * sector  # angle to the nearest tip
    distance = np.hypot(across, down)
    along, aside = 1 - valley * np.cos(sector), valley * np.sin(sector)  # vector of the outline
    length = np.hypot(along, aside)
    outside: Array = (
        aside * (distance * np.cos(folded) - radius) + along * distance * np.sin(folded)
    ) / length
    return np.where(radius > 0, outside, np.float32(9))


def _normalise(vectors: Array) -> Array:
    """Scale vectors (..., 3) to length 1."""
    directions: Array = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return directions
