"""Load a dataset from any supported source and split it."""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.bundle import Task
from models.data.dataset import DataConfig, Dataset, Split
from models.data.hub import HUB_DATASETS, read_hub_dataset
from models.data.image_archive import read_image_archive
from models.data.image_folder import read_image_folder
from models.data.images import MAX_LISTED_IMAGES, EncodedImages, LazyImages
from models.data.samples import Samples, SplitRows, split_rows
from models.data.shapes import load_shapes
from models.data.split_names import TRAIN_NAMES, find_split
from models.data.summary import summarise, warnings_of
from models.data.table_files import SUFFIXES as TABLE_SUFFIXES
from models.data.table_files import kind_of_table
from models.data.text_table import Columns, is_text_folder, read_texts
from models.preprocess import ImagePreprocessor, Text

log = logging.getLogger(__name__)

NAMES = (*HUB_DATASETS, "shapes")
IN_MEMORY_BYTES = 2**31  # of decoded images; Tiny ImageNet has 1.4e9


class SplitInputs(NamedTuple):
    """The inputs and labels of the splits, in the order of `SplitRows`."""

    train: Split
    calibration: Split
    certification: Split
    test: Split


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
    columns = Columns(config.text_column, config.label_column, config.label_separator)
    if path.is_dir():
        folders = (each.name for each in path.iterdir() if each.is_dir())
        if find_split(TRAIN_NAMES, folders) or not is_text_folder(path):
            return read_image_folder(path)
        return read_texts(path, columns, skip_damaged=config.skip_damaged)
    if path.exists() and path.suffix.lower() == ".npz":
        return read_image_archive(path)
    if path.exists() and kind_of_table(path):
        return read_texts(path, columns, skip_damaged=config.skip_damaged)
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


def _text_dataset(samples: Samples, texts: list[Text], config: DataConfig) -> Dataset:
    if config.image_size is not None:
        raise ValueError(
            f"image_size is {config.image_size}, but {config.dataset} holds texts; leave it out"
        )
    notes: list[str] = []
    parts = _split(samples, config, notes)
    splits = SplitInputs(
        *(Split([texts[row] for row in part], samples.labels[part]) for part in parts)
    )
    return _dataset("text", samples, splits, config, notes)


def _image_dataset(
    samples: Samples,
    encoded: EncodedImages,
    config: DataConfig,
    images: ImagePreprocessor | None,
) -> Dataset:
    log.info("checking %d images for duplicates and damage", len(samples.labels))
    if config.skip_damaged:
        samples, encoded = _without_damaged(samples, encoded)
    notes: list[str] = []
    parts = _split(samples, config, notes)
    height, width = encoded.common_size(config.image_size if images is None else images.height)
    if images is not None:
        height, width = images.height, images.width
    lazy = [LazyImages(encoded, part, height, width, images) for part in parts]
    in_memory = sum(map(len, parts)) * height * width * 3 <= IN_MEMORY_BYTES
    notes.append(
        f"{sum(map(len, parts))} images of {width}x{height}, decoded "
        f"{'into memory' if in_memory else 'at each use'}"
    )
    splits = SplitInputs(
        *(
            Split(each[:] if in_memory else each, samples.labels[part])
            for each, part in zip(lazy, parts, strict=True)
        )
    )
    return _dataset("image", samples, splits, config, notes)


def _without_damaged(samples: Samples, encoded: EncodedImages) -> tuple[Samples, EncodedImages]:
    """Leave out the images that cannot be decoded."""
    unusable = encoded.find_unusable()
    if not unusable:
        return samples, encoded
    bad = np.zeros(len(samples.labels), bool)
    bad[[row for row, _ in unusable]] = True
    good = np.flatnonzero(~bad)
    names = ", ".join(encoded.name(row) for row, _ in unusable[:MAX_LISTED_IMAGES])
    more = ", ..." if len(unusable) > MAX_LISTED_IMAGES else ""
    left = samples._replace(
        inputs=encoded.select(good),
        labels=samples.labels[good],
        is_test=None if samples.is_test is None else samples.is_test[good],
        notes=(*samples.notes, f"passed over {len(unusable)} damaged images: {names}{more}"),
    )
    if absent := set(range(len(samples.classes))) - set(left.labels.tolist()):
        raise ValueError(
            f"all images of the class {samples.classes[min(absent)]!r} are damaged; replace them, "
            f"or remove the class"
        )
    return left, encoded.select(good)


def _split(samples: Samples, config: DataConfig, notes: list[str]) -> SplitRows:
    return split_rows(
        samples,
        config.calibration_size,
        config.seed,
        calibration_from=config.calibration_from,
        certification_size=config.certification_size,
        stratified=config.stratified,
        note=notes.append,
    )


def _dataset(
    task: Task, samples: Samples, splits: SplitInputs, config: DataConfig, notes: list[str]
) -> Dataset:
    """Make a dataset of its splits, and log its summary."""
    held_out = splits.certification if len(splits.certification.labels) else None
    dataset = Dataset(
        task, samples.classes, splits.train, splits.calibration, splits.test, held_out
    )
    level = logging.WARNING if any(warnings_of(dataset)) else logging.INFO
    log.log(level, "%s", summarise(dataset, config.dataset, [*samples.notes, *notes]))
    return dataset
