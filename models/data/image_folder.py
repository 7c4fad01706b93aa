"""Read datasets of images from one folder per class."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.data.images import EncodedImages
from models.data.samples import Samples, index_labels
from models.data.split_names import TEST_NAMES, TRAIN_NAMES, find_split, is_split_name

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif"),
)
MAX_LISTED_FILES = 3


class _Listing(NamedTuple):
    """Images of class folders: paths and class names, (N,) each, and the other files there."""

    paths: list[str]
    names: list[str]
    others: list[str]


def read_image_folder(folder: Path) -> Samples:
    """List the images of `train/CLASS/*` and `test/CLASS/*`, or of `CLASS/*` alone.

    Splits have their usual names in any case. If there is no `test` folder, `val`, `validation`,
    `valid` or `dev` takes its place. Class folders may have subfolders. Names that begin with a dot
    are ignored.

    Raises:
        ValueError: If there are fewer than two classes, a class folder holds no images, the
            training and test folders have different classes, or the classes look like splits.
    """
    train, notes, is_test = _split_folder(folder, TRAIN_NAMES), tuple[str, ...](), None
    if train is None or _has_images(train):  # a class may be called train
        _check_no_splits(folder)
        listing = _list_classes(folder)
    else:
        listing, test = _list_classes(train), _test_folder(folder, train)
        of_test = _list_classes(test)
        size = len(listing.paths)
        listing = _Listing(*(a + b for a, b in zip(listing, of_test, strict=True)))
        is_test = np.arange(len(listing.paths)) >= size
        notes = _other_folders(folder, (train, test))
    indexed = index_labels(listing.names, is_test, str(folder))
    notes += _describe_others(listing.others, folder) + indexed.notes
    images = EncodedImages(listing.paths, str(folder))
    return Samples(indexed.classes, images, indexed.labels, is_test, notes)


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _split_folder(folder: Path, wanted: Sequence[str]) -> Path | None:
    """Return the folder of the first wanted split.

    Raises:
        ValueError: If two folders differ in case only.
    """
    found = find_split(wanted, (path.name for path in _folders(folder)))
    if len(found) > 1:
        raise ValueError(f"{folder} holds both {found[0]} and {found[1]}; remove one")
    return folder / found[0] if found else None


def _test_folder(folder: Path, train: Path) -> Path:
    test = _split_folder(folder, TEST_NAMES)
    if test is None:
        raise ValueError(
            f"{folder} holds {train.name} but none of {', '.join(TEST_NAMES)}; add one, or give "
            f"{train} to hold out a tenth of it as the test set"
        )
    return test


def _check_no_splits(folder: Path) -> None:
    """Refuse class folders that are splits under other names.

    Raises:
        ValueError: If all have the same sub-folders of images, or the names of splits.
    """
    folders = _folders(folder)
    inside = {_sub_folders(path) for path in folders}
    same = next(iter(inside)) if len(inside) == 1 and len(folders) > 1 else ()
    is_named = folders and all(is_split_name(path.name) for path in folders)
    if len(same) > 1 or (is_named and any(inside)):
        names = ", ".join(path.name for path in folders[:5])
        raise ValueError(
            f"the folders {names} of {folder} look like splits, because they hold the same "
            f"sub-folders ({', '.join(same[:5])}); call them train and test, or move the "
            f"images of each class into one folder without sub-folders"
            if same
            else f"the folders {names} of {folder} look like splits, and none is the training set; "
            f"call it train"
        )


def _sub_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the sub-folders, if all images are in them."""
    return () if _has_images(folder) else tuple(path.name for path in _folders(folder))


def _list_classes(folder: Path) -> _Listing:
    """List the images in the class folders."""
    classes = _folders(folder)
    if len(classes) < 2:
        raise ValueError(
            f"{folder} holds {len(classes)} class folders; images need one folder per class and at "
            f"least two classes, texts need the tables train and test (.csv, .tsv, .jsonl ...)"
        )
    listing = _Listing([], [], [path.name for path in folder.iterdir() if _is_other(path)])
    for path in classes:
        images, others = _list_images(path)
        if not images:
            raise ValueError(
                f"{path} holds no images ({', '.join(SUFFIXES)}); add some, or remove the folder"
            )
        listing.paths.extend(images)
        listing.names.extend([path.name] * len(images))
        listing.others.extend(others)
    return listing


def _is_other(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _list_images(folder: Path) -> tuple[list[str], list[str]]:
    """List the paths of the images and the names of the other files below a folder."""
    found, others = [], []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if _is_image(name):
                found.append(os.path.join(parent, name))
            elif not name.startswith("."):
                others.append(name)
    return sorted(found), others


def _describe_others(names: Iterable[str], folder: Path) -> tuple[str, ...]:
    """Say which files were passed over, by their suffix."""
    names = sorted(names)
    if not names:
        return ()
    counts = Counter(Path(name).suffix.lower() or "no suffix" for name in names)
    kinds = ", ".join(f"{count} of {suffix}" for suffix, count in counts.most_common(5))
    more = ", ..." if len(names) > MAX_LISTED_FILES else ""
    return (
        f"passed over {len(names)} files of {folder} that are not images ({kinds}; "
        f"{', '.join(names[:MAX_LISTED_FILES])}{more})",
    )


def _other_folders(folder: Path, used: Sequence[Path]) -> tuple[str, ...]:
    others = [path.name for path in _folders(folder) if path not in used]
    files = [path.name for path in folder.iterdir() if _is_other(path)]
    notes: tuple[str, ...] = ()
    if others:
        notes = (f"passed over other folders of {folder}: {', '.join(others[:5])}",)
    return notes + _describe_others(files, folder)


def _has_images(folder: Path) -> bool:
    return any(_is_image(path.name) for path in folder.iterdir())


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
