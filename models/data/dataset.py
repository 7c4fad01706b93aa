"""Labelled datasets, and the settings that say how to load and split them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.bundle import Task


@dataclass(frozen=True)
class DataConfig:
    """Settings that select a dataset and say how to load and split it.

    Attributes:
        dataset: A path or, if nothing exists there, one of `load.NAMES`. The path is an `.npz` of
            encoded images; a folder `train/CLASS/*` and `test/CLASS/*` (or `val`, `validation`),
            or `CLASS/*` alone; a `.csv`, `.tsv` or `.jsonl` of texts, or a folder with two such
            tables, `train` and `test` (or `validation`). If there is no test set, a tenth of every
            class is held out as one.
        text_column: Header of the texts' column or, in a table without headers, its number from 0.
        label_column: Header or number of the labels' column.
        calibration_size: Number of training rows to hold out. None: 5000, or a fifth of the
            training rows if that is less.
        image_size: Images are scaled to cover a square of this side and cropped to it. None: images
            stay as they are and must all have the same size.
        seed: Seed of every split.
    """

    dataset: str
    text_column: str = "text"
    label_column: str = "label"
    calibration_size: int | None = None
    image_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, minimum in (("calibration_size", 1), ("image_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name} is {value}; it must be {minimum} or more")


class Images(Protocol):
    """N images of one size, either in memory or decoded at each access."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all images, (N, H, W, 3)."""

    def __len__(self) -> int:
        """Return the number of images, N."""

    def __getitem__(self, rows: NDArray[np.int64] | slice, /) -> NDArray[np.uint8]:
        """Return some of the images, (n, H, W, 3).

        Raises:
            ValueError: If an image is damaged; the message names it.
        """


class Split(NamedTuple):
    """N images or texts, and their labels (N,) or, for segmentation, masks (N, H, W)."""

    inputs: Images | Sequence[str]
    labels: NDArray[np.int64]


class Dataset(NamedTuple):
    """Three splits that share no input; the calibration set is held out of the training rows."""

    task: Task
    classes: tuple[str, ...]
    train: Split
    calibration: Split
    test: Split
