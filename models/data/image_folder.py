"""Read datasets of images from one folder per class."""

import os
from pathlib import Path

import numpy as np

from models.data.images import EncodedImages
from models.data.samples import Samples, index_labels

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
TEST_FOLDERS = ("test", "val", "validation")  # the first that exists is the test set


def read_image_folder(folder: Path) -> Samples:
    """List the images of `train/CLASS/*` and `test/CLASS/*`, or of `CLASS/*` alone.

    If there is no `test` folder, `val` or `validation` takes its place. Class folders may have
    subfolders. Names that begin with a dot are ignored.

    Raises:
        ValueError: If there are fewer than two classes, a class folder holds no images, or the
            training and test folders have different classes.
    """
    train = folder / "train"
    if not train.is_dir() or _has_images(train):  # a class may be called train
        paths, names = _list_classes(folder)
        is_test = None
    else:
        paths, names = _list_classes(train)
        test_paths, test_names = _list_classes(_test_folder(folder))
        is_test = np.arange(len(paths) + len(test_paths)) >= len(paths)
        paths, names = paths + test_paths, names + test_names
    classes, labels = index_labels(names, is_test, str(folder))
    return Samples(classes, EncodedImages(paths, str(folder)), labels, is_test)


def _test_folder(folder: Path) -> Path:
    for name in TEST_FOLDERS:
        if (folder / name).is_dir():
            return folder / name
    raise ValueError(
        f"{folder} holds train but none of {', '.join(TEST_FOLDERS)}; add one, or give "
        f"{folder / 'train'} to hold out a tenth of it as the test set"
    )


def _list_classes(folder: Path) -> tuple[list[str], list[str]]:
    """List the paths and class names, both (N,), of all images in the class folders."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) < 2:
        raise ValueError(
            f"{folder} holds {len(classes)} class folders; images need one folder per class and at "
            f"least two classes, texts need the tables train and test (.csv, .tsv or .jsonl)"
        )
    paths: list[str] = []
    names: list[str] = []
    for path in classes:
        images = _list_images(path)
        if not images:
            raise ValueError(
                f"{path} holds no images ({', '.join(SUFFIXES)}); add some, or remove the folder"
            )
        paths += images
        names += [path.name] * len(images)
    return paths, names


def _list_images(folder: Path) -> list[str]:
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(parent, name) for name in files if _is_image(name)]
    return sorted(found)


def _has_images(folder: Path) -> bool:
    return any(_is_image(path.name) for path in folder.iterdir())


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
