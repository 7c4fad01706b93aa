"""Labelled datasets, and the settings that say how to load and split them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from models.bundle import Task
from models.preprocess import Text

CalibrationSource = Literal["train", "test"]


@dataclass(frozen=True)
class DataConfig:
    """Settings that select a dataset and say how to load and split it.

    Attributes:
        dataset: A path or, if nothing exists there, one of `load.NAMES`. The path is an `.npz` of
            encoded images; a folder `train/CLASS/*` and `test/CLASS/*` (or other usual names, see
            `split_names`), or `CLASS/*` alone; a table of texts (see `table_files.SUFFIXES`), or a
            folder with two such tables, `train` and `test` (or another usual name). If there is no
            test set, a tenth of every class is held out as one.
        text_column: Header of the texts' column or, in a table without headers, its number from 0.
            Two with a comma between them are pairs; a plus joins columns into one text.
        label_column: Header or number of the labels' column. Several with commas between them are
            one column per class, and a row may have several classes.
        label_separator: What separates the labels of a row that may have several; None: one label
            a row, except in JSON and Parquet where a list of labels is several.
        calibration_size: Number of rows to hold out for fitting schedulers. None: 5000, or a fifth
            of the rows they are taken from if that is less.
        calibration_from: Where calibration rows are taken from. `test` is for networks that have
            seen all training rows.
        certification_size: Number of test rows to set aside, on which nothing is fitted, chosen or
            reported.
        image_size: Images are scaled to cover a square of this side and cropped to it. None: images
            stay as they are and must all have the same size.
        seed: Seed of every split.
        skip_damaged: Pass over damaged images, and rows of a table without text or label.
        stratified: Draw calibration and certification rows class by class, in proportion. False
            draws them as versions before this setting did, to find the rows of their runs again.
    """

    dataset: str
    text_column: str = "text"
    label_column: str = "label"
    label_separator: str | None = None
    calibration_size: int | None = None
    calibration_from: CalibrationSource = "train"
    certification_size: int = 0
    image_size: int | None = None
    seed: int = 0
    skip_damaged: bool = False
    stratified: bool = True

    def __post_init__(self) -> None:
        for name, minimum in (
            ("calibration_size", 1),
            ("certification_size", 0),
            ("image_size", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name} is {value}; it must be {minimum} or more")
        if self.calibration_from not in get_args(CalibrationSource):
            raise ValueError(f"calibration_from is {self.calibration_from!r}; use train or test")


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
    """N images or texts, and their labels.

    Labels are (N,); for segmentation masks (N, H, W); where a row may have several classes (N, C),
    1 for those that it has.
    """

    inputs: Images | Sequence[Text]
    labels: NDArray[np.int64]


class Dataset(NamedTuple):
    """Splits that share no input.

    Attributes:
        task: Task of the labels.
        classes: Names of the C classes.
        train: Rows to train on.
        calibration: Rows to fit schedulers to.
        test: Rows to report accuracy on.
        certification: Rows on which nothing may be fitted, chosen or reported; None if none were
            held out.
    """

    task: Task
    classes: tuple[str, ...]
    train: Split
    calibration: Split
    test: Split
    certification: Split | None = None

    def map_labels(
        self, classes: tuple[str, ...], change: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    ) -> "Dataset":
        """Return the dataset with other classes and with changed labels in every split."""

        def changed(split: Split) -> Split:
            return Split(split.inputs, change(split.labels))

        certification = self.certification and changed(self.certification)
        train, calibration, test = map(changed, (self.train, self.calibration, self.test))
        return Dataset(self.task, classes, train, calibration, test, certification)
