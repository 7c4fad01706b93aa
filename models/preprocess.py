"""Turn the image or text of a request into the input of stage 0."""

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from tokenizers import Tokenizer

from models.backend import State

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations whose width is the upright image's height
# The transpose that turns each EXIF orientation upright.
UPRIGHT = dict(
    enumerate(
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ),
        start=2,
    )
)
# A large JPEG is decoded at a fraction of its size, but at least at this multiple of the input's.
DRAFT_FACTOR = 4
# A decoder visits all blocks of a JPEG for each scan, even if the scan is nearly empty. Encoders
# write about 10 scans, those that optimise for size some 20.
MAX_SCANS = 32
MAX_SEGMENTS = 1000  # read to tell real scans from bytes that only look like them
JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
JPEG_SCAN_MARKER = re.compile(JPEG_SCAN)
JPEG_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
SMALL_BYTES, SMALL_PIXELS, SMALL_CHARACTERS = 8192, 64 * 64, 512  # about 0.2 ms of decoding
# Texts are cut to this many characters per token of the limit before they are tokenised.
CHARACTERS_PER_TOKEN = 64


class InvalidInput(ValueError):
    """The input cannot be decoded; the message says why."""


class ModelInput(NamedTuple):
    """Input of stage 0 for one request.

    Attributes:
        state: A state of one row.
        truncated: Whether the text was longer than the model's limit.
        size: Width and height of the upright image; None for a text.
    """

    state: State
    truncated: bool = False
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class ImagePreprocessor:
    """Decode an image of any size and mode to the input of the first stage.

    Attributes:
        height: Height of the network's input.
        width: Width of the network's input.
        mean: Mean of each channel, on a scale of 0 to 1.
        std: Standard deviation of each channel.
        fit: `cover`: scale to cover the input and crop to the centre; `stretch`: scale each side
            separately, so that no part of the image is lost.
        dtype: Type of the first stage's input. `float32`: normalised planes (N, 3, H, W). `uint8`:
            pixels (N, H, W, 3), which the stage normalises itself.
        max_pixels: Largest image that is decoded, checked in its header.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Literal["cover", "stretch"] = "cover"
    dtype: Literal["float32", "uint8"] = "float32"
    max_pixels: int = 50_000_000

    _levels: NDArray[np.float32] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Normalised values of all 256 levels of each channel, so that normalising is a look-up.
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        shades = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
        object.__setattr__(self, "_levels", np.ascontiguousarray(((shades - mean) / std).T))

    def __call__(self, data: bytes) -> ModelInput:
        """Decode an image to network input of one row, as `batch` describes it.

        Raises:
            InvalidInput: If the bytes are not an image, the image is damaged, or it has too many
                pixels.
        """
        return self._prepare(self._open(data))

    def decode_if_small(self, data: bytes) -> ModelInput | None:
        """Decode a small image; return None if decoding may take more than a few 0.1 ms.

        Raises:
            InvalidInput: As for a call.
        """
        if len(data) > SMALL_BYTES:
            return None
        image = self._open(data)
        if image.width * image.height > SMALL_PIXELS:
            image.close()
            return None
        return self._prepare(image)

    @property
    def example(self) -> State:
        """A state of one row for warm-up and measurements."""
        shape = (1, 3, self.height, self.width)
        if self.dtype == "uint8":
            shape = (1, self.height, self.width, 3)
        return (np.zeros(shape, self.dtype),)

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """Decode an image to upright RGB of the input's size, (H, W, 3).

        Transparent pixels become white.

        Raises:
            InvalidInput: If the bytes are not an image, the image is damaged, or it has too many
                pixels.
        """
        return self._to_pixels(self._open(data))[0]

    def _prepare(self, image: Image.Image) -> ModelInput:
        pixels, size = self._to_pixels(image)
        return ModelInput(self.batch(pixels[None]), size=size)

    def _to_pixels(self, image: Image.Image) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Decode and close an image; return its pixels (H, W, 3), and its original upright size."""
        with image:
            orientation = _orientation(image)
            size = image.size[::-1] if orientation in SIDEWAYS else image.size
            try:
                image.draft(None, (DRAFT_FACTOR * self.width, DRAFT_FACTOR * self.height))
                image.load()
                small = self._shrink(image)
                rgb = _to_rgb(
                    small if orientation is None else small.transpose(UPRIGHT[orientation])
                )
            except Exception as error:  # Pillow raises a dozen types on damaged files
                raise InvalidInput(
                    f"the {image.format} image is damaged or cut off: {error}"
                ) from error
        target = (self.width, self.height)
        if rgb.size != target and self.fit == "stretch":
            rgb = rgb.resize(target, Image.Resampling.BICUBIC)
        elif rgb.size != target:
            rgb = ImageOps.fit(rgb, target, Image.Resampling.BICUBIC)
        return np.asarray(rgb), size

    def batch(self, images: NDArray[np.uint8]) -> State:
        """Make network input of images (N, H, W, 3).

        Returns:
            One array: (N, 3, H, W) float32, or the same images if the first stage takes pixels.
        """
        return (images if self.dtype == "uint8" else self.normalise(images),)

    def normalise(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalise images (N, H, W, 3) to network input (N, 3, H, W)."""
        planes = np.empty((len(images), 3, *images.shape[1:3]), np.float32)
        for channel, levels in enumerate(self._levels):
            np.take(levels, images[..., channel], out=planes[:, channel])
        return planes

    def _shrink(self, image: Image.Image) -> Image.Image:
        """Crop margins that the final crop will not use and shrink, before any full-size copy.

        The result covers the final crop in either orientation, at `DRAFT_FACTOR` times the input's
        size or more. Smaller images stay as they are.
        """
        small, large = sorted((self.width, self.height))
        short = min(image.size)
        if self.fit == "stretch":
            factor = short // (DRAFT_FACTOR * large)
            return image.reduce(factor) if factor > 1 and image.mode == "RGB" else image
        keep = -(-short * large // small)  # rounded up
        margins = [max((side - keep) // 2, 0) for side in image.size]
        if any(margins):
            left, top = margins
            image = image.crop((left, top, image.width - left, image.height - top))
        factor = short // (DRAFT_FACTOR * large)
        if factor < 2:
            return image
        if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
            return image.reduce(factor)
        size = (max(image.width // factor, 1), max(image.height // factor, 1))
        # Palette indices and 16-bit values cannot be averaged.
        return image.resize(size, Image.Resampling.NEAREST)

    def _open(self, data: bytes) -> Image.Image:
        if not data:
            raise InvalidInput("the image is empty; send the bytes of an image file")
        if has_too_many_scans(data):
            raise InvalidInput(
                f"the JPEG has more than {MAX_SCANS} scans; save it with fewer scans or as a "
                f"baseline JPEG"
            )
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            # Pillow's own limit is higher; its warning is raised only if warnings are errors.
            raise InvalidInput(
                f"the image has more than the allowed {self.max_pixels} pixels; scale it down"
            ) from error
        except Exception as error:
            raise InvalidInput(
                f"the bytes are not an image of a known format; send one of {', '.join(FORMATS)}"
            ) from error
        width, height = image.size
        if width * height > self.max_pixels:
            image.close()
            raise InvalidInput(
                f"the image is {width}x{height}, more than the allowed {self.max_pixels} pixels; "
                f"scale it down"
            )
        return image


@dataclass(frozen=True)
class TextPreprocessor:
    """Tokenise a text and truncate it at the model's limit.

    Attributes:
        tokenizer: Path of a `tokenizer.json`.
        max_tokens: Most tokens of a text, including special ones.
        pad_id: Token id of padding; the mask marks it.
        length_step: Texts are padded to a multiple of this length, so that more of them share a
            length and can be batched.
        typical_tokens: Length of the example text, with which costs are measured.
    """

    tokenizer: Path
    max_tokens: int
    pad_id: int
    length_step: int
    typical_tokens: int
    _tokenizer: Tokenizer = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            tokenizer = Tokenizer.from_file(str(self.tokenizer))
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(f"{self.tokenizer} is not a tokenizer: {error}") from error
        tokenizer.enable_truncation(self.max_tokens)
        tokenizer.no_padding()
        object.__setattr__(self, "_tokenizer", tokenizer)

    def __call__(self, text: str) -> ModelInput:
        """Tokenise a text to token ids and mask, (1, L) int64 each.

        Raises:
            InvalidInput: If the text is empty or not valid Unicode.
        """
        limit = CHARACTERS_PER_TOKEN * self.max_tokens
        if not text[:limit].strip():
            raise InvalidInput("the text is empty; send at least one word")
        try:
            encoding = self._tokenizer.encode(text[:limit])
        except (TypeError, UnicodeError) as error:
            raise InvalidInput(
                "the text holds half of a surrogate pair; send valid Unicode"
            ) from error
        if not encoding.ids:
            raise InvalidInput("the text holds no tokens of the model; send at least one word")
        step = self.length_step
        length = min(-(-len(encoding.ids) // step) * step, self.max_tokens)
        state = self._pad([encoding.ids], length)
        return ModelInput(state, bool(encoding.overflowing) or len(text) > limit)

    def decode_if_small(self, text: str) -> ModelInput | None:
        """Tokenise a short text; return None if that may take more than a few 0.1 ms.

        Raises:
            InvalidInput: As for a call.
        """
        return self(text) if len(text) <= SMALL_CHARACTERS else None

    @property
    def example(self) -> State:
        """A state of one row for warm-up and measurements."""
        ids = np.full((1, self.typical_tokens), self.pad_id, np.int64)
        return ids, np.ones_like(ids)

    def batch(self, texts: Sequence[str]) -> State:
        """Tokenise N texts to token ids and mask, (N, L) int64 each, padded to the longest."""
        limit = CHARACTERS_PER_TOKEN * self.max_tokens
        encodings = self._tokenizer.encode_batch([text[:limit] for text in texts])
        rows = [encoding.ids for encoding in encodings]
        return self._pad(rows, max(map(len, rows)))

    def _pad(self, rows: Sequence[Sequence[int]], length: int) -> State:
        ids = np.full((len(rows), length), self.pad_id, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return ids, mask


def has_too_many_scans(data: bytes) -> bool:
    """Return whether a file is a JPEG with more scans than the limit.

    Counting the marker's two bytes settles most files. Embedded previews, and videos after the
    image, hold these bytes too, so above the limit the function follows the segments as a decoder
    does.
    """
    if not data.startswith(JPEG_START) or _count_scan_markers(data) <= MAX_SCANS:
        return False
    position = scans = 0
    for _ in range(MAX_SEGMENTS):
        segment = JPEG_SEGMENT.search(data, position)
        if segment is None or segment[0] == JPEG_END:
            return False
        scans += segment[0] == JPEG_SCAN
        if scans > MAX_SCANS:
            return True
        start = segment.end()
        position = start + max(int.from_bytes(data[start : start + 2], "big"), 2)
    return True


def _count_scan_markers(data: bytes) -> int:
    """Count the two bytes of the scan marker, ten times as fast as `bytes.count`."""
    if len(data) <= SMALL_BYTES:
        return len(JPEG_SCAN_MARKER.findall(data))
    marker = int.from_bytes(JPEG_SCAN, "little")
    # Pairs of bytes that start at even and at odd offsets.
    pairs = [np.frombuffer(data, "<u2", (len(data) - offset) // 2, offset) for offset in (0, 1)]
    return sum(int(np.count_nonzero(values == marker)) for values in pairs)


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height after applying the image's EXIF orientation."""
    return image.size[::-1] if _orientation(image) in SIDEWAYS else image.size


def _orientation(image: Image.Image) -> int | None:
    """Read the EXIF orientation; None if the image is upright or its EXIF data is unreadable."""
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return orientation if orientation in UPRIGHT else None
    return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):  # 16 bits of grey in a 16 or 32 bit integer
        grey = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
