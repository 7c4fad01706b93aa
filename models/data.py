"""Labelled pictures and texts: training, calibration and test split."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.bundle import Task
from models.hub_datasets import HUB_DATASETS, read_hub_dataset
from models.image_archive import read_image_archive
from models.image_folder import read_image_folder
from models.images import EncodedImages, LazyImages
from models.samples import Samples, split_rows
from models.text_table import SUFFIXES as TABLE_SUFFIXES
from models.text_table import Columns, is_text_folder, read_texts

log = logging.getLogger(__name__)

NAMES = (*HUB_DATASETS, "shapes")
IN_MEMORY_BYTES = 2**31  # of decoded pictures; Tiny ImageNet has 1.4e9


@dataclass(frozen=True)
class DataConfig:
    """Which data set, and how it is read and split.

    Attributes:
        dataset: A path or, where nothing lies there, one of `NAMES`. A path leads to an `.npz` of
            encoded pictures; a folder `train/CLASS/*` and `test/CLASS/*` (or `val`, `validation`),
            or `CLASS/*` alone; a `.csv`, `.tsv` or `.jsonl` of texts, or a folder with two such
            tables, `train` and `test` (or `validation`). Without a test set, a tenth of every class
            becomes it.
        text_column: Header of the texts or, in a table without headers, the column's number from 0.
        label_column: Likewise of the labels.
        calibration_size: Training rows held out; None: 5000, or a fifth of the training rows where
            that is less.
        image_size: Side of the square that pictures are scaled to cover and cut to; None: they stay
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
    """N pictures of one size, in memory or decoded whenever they are asked for."""

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
    """N pictures or texts, and their labels (N,) or, in segmentation, masks (N, H, W)."""

    inputs: Images | Sequence[str]
    labels: NDArray[np.int64]


class Dataset(NamedTuple):
    """Three splits that share no input; the calibration set is held out of the training rows."""

    task: Task
    classes: tuple[str, ...]
    train: Split
    calibration: Split
    test: Split


def load_dataset(config: DataConfig) -> Dataset:
    """Read, check and split a data set.

    A training row whose input also stands in the test set, or in an earlier training row, is
    dropped; pictures are compared by their encoded bytes, texts without the blanks around them.
    Pictures that take more than 2 GiB stay encoded.

    Raises:
        ValueError: If the data set is unknown, damaged, or too small for its calibration set.
    """
    path = Path(config.dataset)
    if config.dataset == "shapes" and not path.exists():
        from models.shapes import load_shapes  # the module knows this one

        return load_shapes(config)
    samples = _read(path, config)
    if isinstance(samples.inputs, EncodedImages):
        return _image_dataset(samples, samples.inputs, config)
    return _text_dataset(samples, samples.inputs, config)


def _read(path: Path, config: DataConfig) -> Samples:
    columns = Columns(config.text_column, config.label_column)
    suffix = path.suffix.lower()
    if path.is_dir():
        is_text = is_text_folder(path) and not (path / "train").is_dir()
        return read_texts(path, columns) if is_text else read_image_folder(path)
    if path.exists() and suffix == ".npz":
        return read_image_archive(path)
    if path.exists() and suffix in TABLE_SUFFIXES:
        return read_texts(path, columns)
    if path.exists():
        raise ValueError(
            f"data set {path} is of no known format; give an .npz, {', '.join(TABLE_SUFFIXES)} "
            f"or a folder"
        )
    if config.dataset in HUB_DATASETS:
        return read_hub_dataset(config.dataset)
    if config.dataset == "imagenet":
        raise ValueError(
            "imagenet cannot be fetched, since all must ask for it themselves; give the folder "
            "that holds its train/CLASS/* and val/CLASS/*, and --image-size 224"
        )
    raise ValueError(
        f"data set {config.dataset} is neither a file or folder here nor one of the names "
        f"{', '.join(NAMES)}"
    )


def _text_dataset(samples: Samples, texts: list[str], config: DataConfig) -> Dataset:
    if config.image_size is not None:
        raise ValueError(
            f"image_size is {config.image_size}, but {config.dataset} holds texts; leave it out"
        )
    train, calibration, test = (
        Split([texts[row] for row in part], samples.labels[part])
        for part in split_rows(samples, config.calibration_size, config.seed)
    )
    return Dataset("text", samples.classes, train, calibration, test)


def _image_dataset(samples: Samples, encoded: EncodedImages, config: DataConfig) -> Dataset:
    log.info("comparing and checking %d pictures", len(samples.labels))
    parts = split_rows(samples, config.calibration_size, config.seed)
    height, width = encoded.common_size(config.image_size)
    lazy = [LazyImages(encoded, part, height, width) for part in parts]
    in_memory = sum(map(len, parts)) * height * width * 3 <= IN_MEMORY_BYTES
    log.info(
        "%d pictures of %dx%d, decoded %s",
        sum(map(len, parts)),
        width,
        height,
        "now" if in_memory else "whenever they are used",
    )
    train, calibration, test = (
        Split(images[:] if in_memory else images, samples.labels[part])
        for images, part in zip(lazy, parts, strict=True)
    )
    return Dataset("image", samples.classes, train, calibration, test)
