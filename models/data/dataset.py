"""A labelled dataset and how it is read and split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.bundle import Task


@dataclass(frozen=True)
class DataConfig:
    """Which dataset, and how it is read and split.

    Attributes:
        dataset: A path or, where nothing lies there, one of `NAMES`. A path leads to an `.npz` of
            encoded images; a folder `train/CLASS/*` and `test/CLASS/*` (or `val`, `validation`),
            or `CLASS/*` alone; a `.csv`, `.tsv` or `.jsonl` of texts, or a folder with two such
            tables, `train` and `test` (or `validation`). Without a test set, a tenth of every class
            becomes it.
        text_column: Header of the texts or, in a table without headers, the column's number from 0.
        label_column: Likewise of the labels.
        calibration_size: Training rows held out; None: 5000, or a fifth of the training rows where
            that is less.
        image_size: Side of the square that images are scaled to cover and cut to; None: they stay
            as they are, and all must be of one size.
        seed: Of every split.
    """

    dataset: str
    text_column: str = "text"
    label_column: str = "label"
    calibration_size: int | None = None
    image_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("calibration_size", 1), ("image_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be {least} or more")


class Images(Protocol):
    """N images of one size, in memory or decoded whenever they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: NDArray[np.int64] | slice, /) -> NDArray[np.uint8]:
        """Some of them, (n, H, W, 3).

        Raises:
            ValueError: If one is damaged; it is named.
        """


class Split(NamedTuple):
    """N images or texts, and their labels (N,) or, in segmentation, masks (N, H, W)."""

    inputs: Images | Sequence[str]
    labels: NDArray[np.int64]


class Dataset(NamedTuple):
    """Three splits that share no input; the calibration set is held out of the training rows."""

    task: Task
    classes: tuple[str, ...]
    train: Split
    calibration: Split
    test: Split
