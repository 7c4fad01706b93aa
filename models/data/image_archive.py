"""Read datasets of encoded images from `.npz` files."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.images import EncodedImages
from models.data.samples import Samples

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


def read_image_archive(path: Path) -> Samples:
    """Read an archive of N images, their labels and their split.

    The file holds `blob` uint8, `off` (N+1,), `y` (N,), `test` (N,) bool and optionally `classes`.
    Image i is `blob[off[i]:off[i + 1]]`. The default classes are those of CIFAR-10.

    Raises:
        ValueError: If the file is not an `.npz`, lacks an array, holds arrays that do not fit
            together, or has a label without a class.
    """
    arrays = _load_arrays(path)
    if missing := {"blob", "off", "y", "test"} - arrays.keys():
        raise ValueError(f"{path} lacks the array {min(missing)!r}; it needs blob, off, y and test")
    blob, offsets = arrays["blob"].tobytes(), arrays["off"].tolist()
    labels, is_test = arrays["y"].astype(np.int64), arrays["test"].astype(bool)
    if not len(offsets) - 1 == len(labels) == len(is_test):
        raise ValueError(
            f"{path} has {len(offsets)} offsets, {len(labels)} labels and {len(is_test)} test "
            f"marks; N images need N+1, N and N"
        )
    if is_test.all() or not is_test.any():
        raise ValueError(
            f"{path} marks {is_test.sum()} of {len(is_test)} images as test; mark some, but not all"
        )
    classes = tuple(map(str, arrays["classes"])) if "classes" in arrays else CIFAR10_CLASSES
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"{path} has labels {labels.min()}..{labels.max()} but {len(classes)} classes; add "
            f"`classes`"
        )
    items = [blob[start:end] for start, end in itertools.pairwise(offsets)]
    return Samples(classes, EncodedImages(items, str(path)), labels, is_test)


def _load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        # Opened here, because numpy does not close its own file if the archive is damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # numpy and zipfile raise a dozen types on a damaged archive
        raise ValueError(f"{path} cannot be read as an .npz file: {error}") from error
