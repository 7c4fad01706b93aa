"""Inputs of `eenet loadtest`: labelled images or texts, clean or corrupted."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.data.image_folder import SUFFIXES
from models.data.text_table import Columns, read_texts
from profiling.loadtest.variants import InputVariant, Modality
from scheduler.npz import read_arrays

IMAGES = Path(__file__).resolve().parents[2] / "tests/data/cifar10_test_300.npz"
COLUMNS = Columns("text", "label")
SHOWN_LABELS = 20
Label = int | str


class Inputs(NamedTuple):
    """Images as files, or texts.

    Attributes:
        modality: Whether they are images or texts.
        items: Files or texts, N of them.
        labels: True class of each, by number or by name, (N,); None if there are none.
    """

    modality: Modality
    items: Sequence[bytes | str]
    labels: Sequence[Label] | None

    @property
    def content_type(self) -> str:
        """Content type of the bodies."""
        # The server reads an image's format from its bytes and not from the content type.
        return "image/jpeg" if self.modality == "image" else "application/json"

    @property
    def files(self) -> list[bytes]:
        """The image files."""
        return [item for item in self.items if isinstance(item, bytes)]

    @property
    def texts(self) -> list[str]:
        """The texts."""
        return [item for item in self.items if isinstance(item, str)]

    def bodies(self, variant: InputVariant, seed: int) -> list[bytes]:
        """Request bodies of all inputs in one variant, (N,)."""
        rng = np.random.default_rng(seed)
        if self.modality == "image":
            return variant.of_images(self.files, rng)
        labels = [None] * len(self.items) if self.labels is None else self.labels
        texts = variant.of_texts(self.texts, labels, rng)
        return [json.dumps({"text": text}).encode() for text in texts]

    def rows_of(self, classes: Sequence[str] | None) -> list[int]:
        """Indices of the inputs of some true classes, named like their labels; None: all.

        Raises:
            ValueError: If there are no labels, or no input has this one.
        """
        if classes is None:
            return list(range(len(self.items)))
        if self.labels is None:
            raise ValueError("--classes needs inputs with labels; these have none")
        named = [str(label) for label in self.labels]
        for name in classes:
            if name not in named:
                shown = ", ".join(sorted(set(named))[:SHOWN_LABELS])
                raise ValueError(f"no input is of the class {name!r}; --classes may name {shown}")
        return [row for row, name in enumerate(named) if name in classes]

    def of_rows(self, rows: Sequence[int]) -> "Inputs":
        """Select inputs by index, in this order."""
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        return Inputs(self.modality, [self.items[row] for row in rows], labels)


def read_inputs(images: Path | None, texts: Path | None, columns: Columns = COLUMNS) -> Inputs:
    """Read the inputs to send; of an archive that marks test images, only these.

    Raises:
        ValueError: If the file cannot be read or is empty.
    """
    if texts is not None:
        return _read_table(texts, columns)
    if images is not None and images.is_dir():
        return _read_folder(images)
    if images is None and not IMAGES.is_file():
        raise ValueError("there are no images here to send; give --images or --texts")
    return _read_archive(images or IMAGES)


def _read_table(path: Path, columns: Columns) -> Inputs:
    samples = read_texts(path, columns)
    classes = samples.classes
    texts = [text for text in samples.inputs if isinstance(text, str)]
    if len(texts) < len(samples.labels) or samples.labels.ndim > 1:
        raise ValueError(
            f"{path} holds pairs or several labels per row; a load test sends one text"
        )
    are_numbers = all(name.isdecimal() for name in classes)
    labels = [int(classes[index]) if are_numbers else classes[index] for index in samples.labels]
    return Inputs("text", texts, labels)


def _read_folder(folder: Path) -> Inputs:
    """Read the images of a folder tree; the folder of an image is its class."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    classes = [path.parent.name for path in paths]
    is_flat = any(path.parent == folder for path in paths)
    return Inputs("image", [path.read_bytes() for path in paths], None if is_flat else classes)


def _read_archive(path: Path) -> Inputs:
    arrays = read_arrays(path, {"blob", "off", "y", "test"}.__contains__)
    if missing := {"blob", "off"} - arrays.keys():
        raise ValueError(f"{path} lacks the array {min(missing)!r}; it needs blob and off")
    blob, offsets = arrays["blob"].tobytes(), arrays["off"].tolist()
    rows = np.flatnonzero(arrays.get("test", np.ones(len(offsets) - 1))).tolist()
    if not rows or ("y" in arrays and len(arrays["y"]) != len(offsets) - 1):
        raise ValueError(f"{path} needs N+1 offsets for N images, and N labels where it has any")
    files = [blob[start:end] for start, end in itertools.pairwise(offsets)]
    labels = [int(arrays["y"][row]) for row in rows] if "y" in arrays else None
    return Inputs("image", [files[row] for row in rows], labels)
