"""Labelled images in memory: training, calibration and test split."""

import io
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Split(NamedTuple):
    """Images (N, H, W, 3) uint8 and their labels (N,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Dataset(NamedTuple):
    """Training, test and calibration set, the last held out of the training images."""

    classes: tuple[str, ...]
    train: Split
    calibration: Split
    test: Split


def load_dataset(path: Path, *, calibration_size: int, seed: int) -> Dataset:
    """Read a data set and hold out its calibration set.

    Args:
        path: An `.npz` of encoded images (`blob` uint8, `off` (N+1,), `y` (N,), `test` (N,) bool
            and, unless the ten classes are CIFAR-10's, `classes`), or a folder `train/CLASS/*` and
            `test/CLASS/*`, all of one size.
        calibration_size: How many training images to hold out.
        seed: Of the permutation that picks them.

    Returns:
        The three splits.

    Raises:
        ValueError: If the path is neither, lacks an array or a class, or is too small for the
            calibration set.
    """
    if path.is_dir():
        classes, train, test = _read_folder(path)
    elif path.suffix == ".npz" and path.is_file():
        classes, train, test = _read_npz(path)
    else:
        raise ValueError(
            f"data set {path} is neither an .npz file nor a folder with train/CLASS and test/CLASS"
        )
    if not 0 < calibration_size < len(train.labels):
        raise ValueError(
            f"calibration size {calibration_size} must lie between 1 and "
            f"{len(train.labels) - 1}, the training images less one"
        )
    order = np.random.default_rng(seed).permutation(len(train.labels))
    held, rest = np.sort(order[:calibration_size]), np.sort(order[calibration_size:])
    return Dataset(
        classes,
        Split(train.images[rest], train.labels[rest]),
        Split(train.images[held], train.labels[held]),
        test,
    )


def _read_npz(path: Path) -> tuple[tuple[str, ...], Split, Split]:
    arrays = _load_arrays(path)
    if missing := {"blob", "off", "y", "test"} - arrays.keys():
        raise ValueError(f"{path} lacks the array {min(missing)!r}; it needs blob, off, y and test")
    blob, offsets = arrays["blob"].tobytes(), arrays["off"]
    labels, is_test = arrays["y"].astype(np.int64), arrays["test"].astype(bool)
    classes = tuple(map(str, arrays["classes"])) if "classes" in arrays else CIFAR10_CLASSES
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"{path} has labels {labels.min()}..{labels.max()} but {len(classes)} classes; add "
            f"`classes`"
        )
    images = np.stack(
        [
            _decode(blob[a:b], f"picture {i} of {path}")
            for i, (a, b) in enumerate(itertools.pairwise(offsets))
        ]
    )
    return (
        classes,
        Split(images[~is_test], labels[~is_test]),
        Split(images[is_test], labels[is_test]),
    )


def _read_folder(path: Path) -> tuple[tuple[str, ...], Split, Split]:
    classes = tuple(sorted(p.name for p in (path / "train").glob("*") if p.is_dir()))
    if len(classes) < 2:
        raise ValueError(
            f"{path}/train holds {len(classes)} class folders; it needs one per class, at least two"
        )
    splits: list[Split] = []
    shapes: set[tuple[int, ...]] = set()
    for part in ("train", "test"):
        files = [
            (file, label)
            for label, name in enumerate(classes)
            for file in sorted((path / part / name).glob("*"))
            if file.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not files:
            raise ValueError(
                f"{path}/{part} holds no images ({', '.join(IMAGE_SUFFIXES)}) in its class folders"
            )
        images = [_decode(file.read_bytes(), str(file)) for file, _ in files]
        shapes |= {image.shape for image in images}
        if len(shapes) > 1:
            raise ValueError(f"the images of {path} differ in size; resize them to one size first")
        splits.append(Split(np.stack(images), np.array([label for _, label in files], np.int64)))
    return classes, splits[0], splits[1]


def _load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # numpy and zipfile raise a dozen types on a damaged archive
        raise ValueError(f"{path} cannot be read as an .npz file: {error}") from error


def _decode(data: bytes, source: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # decoders of damaged files raise a dozen types
        raise ValueError(f"{source} is damaged or no picture: {error}") from error
