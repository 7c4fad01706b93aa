"""Load a dataset from any supported source and split it."""

import logging
from collections.abc import Sequence
from pathlib import Path

from models.bundle import Task
from models.data.counts import count_classes
from models.data.dataset import DataConfig, Dataset, Split
from models.data.hub import HUB_DATASETS, read_hub_dataset
from models.data.image_archive import read_image_archive
from models.data.image_folder import read_image_folder
from models.data.images import EncodedImages, LazyImages
from models.data.samples import Samples, SplitRows, split_rows
from models.data.shapes import load_shapes
from models.data.text_table import SUFFIXES as TABLE_SUFFIXES
from models.data.text_table import Columns, is_text_folder, read_texts
from models.preprocess import ImagePreprocessor

log = logging.getLogger(__name__)

NAMES = (*HUB_DATASETS, "shapes")
IN_MEMORY_BYTES = 2**31  # of decoded images; Tiny ImageNet has 1.4e9


def load_dataset(config: DataConfig, images: ImagePreprocessor | None = None) -> Dataset:
    """Load, check and split a dataset.

    A training row is dropped if its input is also in the test set or in an earlier training row.
    Images are compared by their encoded bytes, texts without surrounding whitespace. Images stay
    encoded if they would take more than 2 GiB.

    Args:
        config: The dataset.
        images: How a server decodes the network's images; None: to squares of the side
            `config.image_size`.

    Raises:
        ValueError: If the dataset is unknown, damaged, or too small for the rows to hold out.
    """
    path = Path(config.dataset)
    if config.dataset == "shapes" and not path.exists():
        return load_shapes(config)
    samples = _read(path, config)
    if isinstance(samples.inputs, EncodedImages):
        return _image_dataset(samples, samples.inputs, config, images)
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
            f"dataset {path} has an unknown format; give an .npz, {', '.join(TABLE_SUFFIXES)} file "
            f"or a folder"
        )
    if config.dataset in HUB_DATASETS:
        return read_hub_dataset(config.dataset)
    if config.dataset == "imagenet":
        raise ValueError(
            "dataset imagenet cannot be fetched, because every user must request access; give the "
            "folder with its train/CLASS/* and val/CLASS/*, and --image-size 224"
        )
    raise ValueError(
        f"dataset {config.dataset} is neither a file or folder here nor one of the names "
        f"{', '.join(NAMES)}; check the path or use one of the names"
    )


def _text_dataset(samples: Samples, texts: list[str], config: DataConfig) -> Dataset:
    if config.image_size is not None:
        raise ValueError(
            f"image_size is {config.image_size}, but {config.dataset} holds texts; leave it out"
        )
    parts = _split(samples, config)
    splits = [Split([texts[row] for row in part], samples.labels[part]) for part in parts]
    return _dataset("text", samples.classes, splits)


def _image_dataset(
    samples: Samples,
    encoded: EncodedImages,
    config: DataConfig,
    images: ImagePreprocessor | None,
) -> Dataset:
    log.info("checking %d images for duplicates and damage", len(samples.labels))
    parts = _split(samples, config)
    height, width = encoded.common_size(config.image_size if images is None else images.height)
    if images is not None:
        height, width = images.height, images.width
    lazy = [LazyImages(encoded, part, height, width, images) for part in parts]
    in_memory = sum(map(len, parts)) * height * width * 3 <= IN_MEMORY_BYTES
    log.info(
        "%d images of %dx%d, decoded %s",
        sum(map(len, parts)),
        width,
        height,
        "into memory" if in_memory else "at each use",
    )
    splits = [
        Split(each[:] if in_memory else each, samples.labels[part])
        for each, part in zip(lazy, parts, strict=True)
    ]
    return _dataset("image", samples.classes, splits)


def _split(samples: Samples, config: DataConfig) -> SplitRows:
    return split_rows(
        samples,
        config.calibration_size,
        config.seed,
        calibration_from=config.calibration_from,
        certification_size=config.certification_size,
        stratified=config.stratified,
    )


def _dataset(task: Task, classes: tuple[str, ...], splits: Sequence[Split]) -> Dataset:
    """Make a dataset of splits in the order of `SplitRows`."""
    train, calibration, certification, test = splits
    held_out = certification if len(certification.labels) else None
    dataset = Dataset(task, classes, train, calibration, test, held_out)
    log.info("%s", "\n".join(count_classes(dataset)))
    return dataset
