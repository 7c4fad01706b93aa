"""Encoded images, and their decoded form for training: all at once, or at each access."""

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
from PIL import Image, UnidentifiedImageError

from models.data.transcode import to_known_format
from models.images import FORMATS
from models.orientation import oriented_size
from models.preprocess import ImagePreprocessor, InvalidInput

T = TypeVar("T")
R = TypeVar("R")

TAIL_BYTES = 4096  # of a file, compared before whole files are
ITEMS_PER_TASK = 16
MAX_LISTED_IMAGES = 50
DATASET_FORMATS = (*FORMATS, "TIFF")


class EncodedImages(NamedTuple):
    """Images encoded as PNG, JPEG, WEBP, GIF, BMP, AVIF, TIFF or, with an extra, HEIC.

    Attributes:
        items: N images, as bytes or as paths of their files.
        source: Where the images come from, for messages.
    """

    items: Sequence[bytes] | Sequence[str]
    source: str

    def read(self, row: int) -> bytes:
        """Read the bytes of one image, in a format that the server reads.

        Raises:
            InvalidInput: As `to_known_format` does.
        """
        item = self.items[row]
        return to_known_format(Path(item).read_bytes() if isinstance(item, str) else item)

    def name(self, row: int) -> str:
        """Name one image in a message."""
        item = self.items[row]
        return item if isinstance(item, str) else f"image {row} of {self.source}"

    def keys(self) -> list[Hashable]:
        """Compute one key per image, (N,); two keys are equal if the images have the same bytes."""
        paths = [item for item in self.items if isinstance(item, str)]
        return _file_keys(paths) if paths else list(self.items)

    def select(self, rows: NDArray[np.intp]) -> "EncodedImages":
        """Return some of the images."""
        return EncodedImages([self.items[row] for row in rows], self.source)

    def common_size(self, image_size: int | None) -> tuple[int, int]:
        """Check the header of every image, and return the height and width to decode to.

        Args:
            image_size: Side of a square; None: the size that all images have.

        Raises:
            ValueError: If files are not images or are too large, all of which are listed, or the
                images differ in size while `image_size` is None.
        """
        sizes = in_threads(self._header_size, range(len(self.items)))
        if unusable := {row: each for row, each in enumerate(sizes) if isinstance(each, str)}:
            unusable = dict(self.find_unusable()) | unusable
            raise ValueError(self.describe_unusable(sorted(unusable.items())))
        if image_size is not None:
            return image_size, image_size
        first = sizes[0]
        for row, size in enumerate(sizes):
            if size != first:
                raise ValueError(
                    f"{self.name(row)} is {size[0]}x{size[1]}, but {self.name(0)} is {first[0]}x"
                    f"{first[1]}; give --image-size to resize all images"
                )
        return int(first[1]), int(first[0])

    def find_unusable(self) -> list[tuple[int, str]]:
        """Decode all images; return the rows of those that are damaged, and the reasons."""
        preprocessor = ImagePreprocessor(1, 1, mean=(0, 0, 0), std=(1, 1, 1))

        def reason(row: int) -> str | None:
            try:
                preprocessor.decode(self.read(row))
            except ValueError as error:
                return f"cannot be used: {error}"
            except OSError as error:
                return f"cannot be read: {error.strerror}"
            return None

        reasons = in_threads(reason, range(len(self.items)))
        return [(row, each) for row, each in enumerate(reasons) if each is not None]

    def describe_unusable(self, unusable: Sequence[tuple[int, str]]) -> str:
        """Say in one sentence which images cannot be used, and what to do."""
        listed = ", ".join(f"{self.name(row)} {why}" for row, why in unusable[:MAX_LISTED_IMAGES])
        if len(unusable) == 1:
            return f"{listed}; replace it, or pass over it with --skip-damaged"
        left = len(unusable) - MAX_LISTED_IMAGES
        more = f", and {left} more" if left > 0 else ""
        return (
            f"{len(unusable)} images cannot be used: {listed}{more}; replace them, or pass over "
            f"them with --skip-damaged"
        )

    def _header_size(self, row: int) -> tuple[int, int] | str:
        """Read the width and height of the upright image, or say what is wrong."""
        item = self.items[row]
        file = item if isinstance(item, str) else io.BytesIO(item)
        try:
            try:
                with Image.open(file, formats=DATASET_FORMATS) as image:
                    width, height = oriented_size(image)
            except UnidentifiedImageError:  # perhaps an HEIC
                with Image.open(io.BytesIO(self.read(row)), formats=FORMATS) as image:
                    width, height = oriented_size(image)
        except InvalidInput as error:
            return f"cannot be used: {error}"
        except Exception:  # Pillow raises a dozen types on damaged files
            return f"is damaged or not an image of a known format ({', '.join(DATASET_FORMATS)})"
        if width * height > ImagePreprocessor.max_pixels:
            return (
                f"is {width}x{height}, more than {ImagePreprocessor.max_pixels} pixels; scale it "
                f"down"
            )
        return width, height


class LazyImages:
    """A selection of encoded images, decoded at each access.

    Images are scaled to cover height x width and cropped to their centre, as the server does it.

    Args:
        encoded: The images to select from.
        rows: Indices of the selected images, (N,).
        height: Height of the decoded images.
        width: Width of the decoded images.
        preprocessor: Decodes them in another way, to this height and width.
    """

    def __init__(
        self,
        encoded: EncodedImages,
        rows: NDArray[np.int64],
        height: int,
        width: int,
        preprocessor: ImagePreprocessor | None = None,
    ) -> None:
        self.encoded = encoded
        self.rows = rows
        self.shape: tuple[int, ...] = (len(rows), height, width, 3)
        plain = ImagePreprocessor(height, width, mean=(0, 0, 0), std=(1, 1, 1))
        self.preprocessor = preprocessor or plain

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: NDArray[np.int64] | slice) -> NDArray[np.uint8]:
        """Decode the images at some positions, (n, H, W, 3).

        Raises:
            ValueError: If an image is damaged; the message names all damaged images of the dataset.
        """
        rows = self.rows[index]
        decoded = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def decode(position: int) -> None:
            decoded[position] = self._decode(int(rows[position]))

        try:
            in_threads(decode, range(len(rows)))
        except InvalidInput as error:
            unusable = self.encoded.find_unusable()
            raise ValueError(self.encoded.describe_unusable(unusable)) from error
        return decoded

    def _decode(self, row: int) -> NDArray[np.uint8]:
        return self.preprocessor.decode(self.encoded.read(row))


def in_threads(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Compute `[work(item) for item in items]` in threads, so that reading and decoding overlap."""
    tasks = [items[i : i + ITEMS_PER_TASK] for i in range(0, len(items), ITEMS_PER_TASK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(lambda task: [work(item) for item in task], tasks)
        return [result for part in parts for result in part]


def _file_keys(paths: Sequence[str]) -> list[Hashable]:
    """Compute keys that are equal for files with the same bytes.

    Size and last bytes come first, so that few files are read whole: ImageNet has a million.
    """
    keys: list[tuple[Hashable, ...]] = [()] * len(paths)
    for compute in (os.path.getsize, _tail, _digest):
        counts = Counter(keys)
        tied = [row for row, key in enumerate(keys) if counts[key] > 1]
        for row, value in zip(tied, in_threads(compute, [paths[row] for row in tied]), strict=True):
            keys[row] = (*keys[row], value)
    return list(keys)


def _tail(path: str) -> bytes:
    # Images of one camera share their headers, but not their last bytes.
    with open(path, "rb") as file:
        file.seek(max(os.path.getsize(path) - TAIL_BYTES, 0))
        return hashlib.blake2b(file.read(), digest_size=16).digest()


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
