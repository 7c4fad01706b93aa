"""Encoded images, and how training reads them: decoded once, or whenever they are needed."""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.preprocess import FORMATS, ImagePreprocessor, oriented_size

T = TypeVar("T")
R = TypeVar("R")

TAIL_BYTES = 4096
ITEMS_PER_TASK = 16


class EncodedImages(NamedTuple):
    """Images as PNG, JPEG, WEBP, GIF or BMP.

    Attributes:
        items: Their bytes, or the paths of their files, N in all.
        source: Where they come from, for sentences.
    """

    items: Sequence[bytes] | Sequence[str]
    source: str

    def read(self, row: int) -> bytes:
        """The bytes of one image."""
        item = self.items[row]
        return Path(item).read_bytes() if isinstance(item, str) else item

    def name(self, row: int) -> str:
        """What sentences call one image."""
        item = self.items[row]
        return item if isinstance(item, str) else f"image {row} of {self.source}"

    def keys(self) -> list[Hashable]:
        """One key an image, (N,), equal where two have the same bytes."""
        paths = [item for item in self.items if isinstance(item, str)]
        return _file_keys(paths) if paths else list(self.items)

    def common_size(self, image_size: int | None) -> tuple[int, int]:
        """Height and width to decode to, once every header has been read.

        Args:
            image_size: The side of a square; None: the size that all images have.

        Raises:
            ValueError: If a file is no image or too large, or the images differ in size while
                `image_size` is None.
        """
        sizes = in_threads(self._header_size, range(len(self.items)))
        if image_size is not None:
            return image_size, image_size
        first = sizes[0]
        for row, size in enumerate(sizes):
            if size != first:
                raise ValueError(
                    f"{self.name(row)} is {size[0]}x{size[1]}, {self.name(0)} {first[0]}x"
                    f"{first[1]}; give --image-size to bring all images to one size"
                )
        return first[1], first[0]

    def _header_size(self, row: int) -> tuple[int, int]:
        """Width and height of the upright image."""
        item = self.items[row]
        file = item if isinstance(item, str) else io.BytesIO(item)
        try:
            with Image.open(file, formats=FORMATS) as image:
                width, height = oriented_size(image)
        except Exception as error:  # readers of damaged files raise a dozen types
            raise ValueError(
                f"{self.name(row)} is damaged or no image of a known format ({', '.join(FORMATS)})"
            ) from error
        if width * height > ImagePreprocessor.max_pixels:
            raise ValueError(
                f"{self.name(row)} is {width}x{height}, more than {ImagePreprocessor.max_pixels} "
                f"pixels; scale it down first"
            )
        return width, height


class LazyImages:
    """Some of the encoded images, decoded whenever they are asked for.

    They are scaled to cover height x width and cut to their middle, as the server does it.

    Args:
        encoded: Images, of which these are some.
        rows: Which, (N,).
        height: Of the decoded images.
        width: Of the decoded images.
    """

    def __init__(
        self, encoded: EncodedImages, rows: NDArray[np.int64], height: int, width: int
    ) -> None:
        self.encoded = encoded
        self.rows = rows
        self.shape: tuple[int, ...] = (len(rows), height, width, 3)
        self.preprocessor = ImagePreprocessor(height, width, mean=(0, 0, 0), std=(1, 1, 1))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: NDArray[np.int64] | slice) -> NDArray[np.uint8]:
        """The images of some positions, (n, H, W, 3).

        Raises:
            ValueError: If one of them is damaged; it is named.
        """
        rows = self.rows[index]
        decoded = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def decode(position: int) -> None:
            decoded[position] = self._decode(int(rows[position]))

        in_threads(decode, range(len(rows)))
        return decoded

    def _decode(self, row: int) -> NDArray[np.uint8]:
        try:
            return self.preprocessor.decode(self.encoded.read(row))
        except ValueError as error:
            raise ValueError(f"{self.encoded.name(row)} cannot be used: {error}") from error


def in_threads(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`[work(item) for item in items]`, with disks and decoders at work side by side."""
    tasks = [items[i : i + ITEMS_PER_TASK] for i in range(0, len(items), ITEMS_PER_TASK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(lambda task: [work(item) for item in task], tasks)
        return [result for part in parts for result in part]


def _file_keys(paths: Sequence[str]) -> list[Hashable]:
    """Equal for files of the same bytes; few files are read whole, so that ImageNet is bearable."""
    keys: list[tuple[Hashable, ...]] = [()] * len(paths)
    for look in (os.path.getsize, _tail, _digest):
        counts = Counter(keys)
        alike = [row for row, key in enumerate(keys) if counts[key] > 1]
        for row, seen in zip(alike, in_threads(look, [paths[row] for row in alike]), strict=True):
            keys[row] = (*keys[row], seen)
    return list(keys)


def _tail(path: str) -> bytes:
    # Headers of one camera are alike; the last bytes of compressed images are not.
    with open(path, "rb") as file:
        file.seek(max(os.path.getsize(path) - TAIL_BYTES, 0))
        return hashlib.blake2b(file.read(), digest_size=16).digest()


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
