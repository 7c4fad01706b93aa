"""From the bytes or the text a client sends to what stage 0 reads."""

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
TURNED = (5, 6, 7, 8)  # EXIF orientations whose width is the upright image's height
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
)  # what undoes each EXIF orientation
# A large JPEG is decoded at a fraction of its size, but at least at this multiple of ours.
DRAFT_FACTOR = 4
# A decoder walks over all blocks of a JPEG for each scan, though that may hold next to nothing.
# Encoders make 10 scans, those that try hard some 20.
MAX_SCANS = 32
MAX_SEGMENTS = 1000  # looked at to tell the scans of a picture from bytes that only look like them
JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
JPEG_SCAN_MARK = re.compile(JPEG_SCAN)
JPEG_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
SMALL_BYTES, SMALL_PIXELS, SMALL_CHARACTERS = 8192, 64 * 64, 512  # about 0.2 ms of decoding
CHARACTERS_A_TOKEN = 64  # of a text longer than that many a token the rest is not even tokenised


class InvalidInput(ValueError):
    """The input is nothing that we read; the sentence says why."""


class ModelInput(NamedTuple):
    """One row for stage 0.

    Attributes:
        state: The row.
        truncated: Whether a part of the text did not fit.
        size: Width and height of the upright image, None of a text.
    """

    state: State
    truncated: bool = False
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class ImagePreprocessor:
    """Decodes an image of any size and mode and normalises it.

    Attributes:
        height: Of the network's input.
        width: Of the network's input.
        mean: Per channel, on a scale of 0 to 1.
        std: Per channel.
        fit: `cover`: scale to cover the input and cut to its middle; `stretch`: scale each side on
            its own, so that every pixel of the image has its place in the input.
        max_pixels: Largest image that is decoded, judged by its header.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Literal["cover", "stretch"] = "cover"
    max_pixels: int = 50_000_000

    _levels: NDArray[np.float32] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        shades = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
        object.__setattr__(self, "_levels", np.ascontiguousarray(((shades - mean) / std).T))

    def __call__(self, data: bytes) -> ModelInput:
        """Bytes to network input, (1, 3, H, W).

        Raises:
            InvalidInput: If they are no image, a damaged one, or one of too many pixels.
        """
        return self._prepared(self._open(data))

    def quickly(self, data: bytes) -> ModelInput | None:
        """The same for small images; None where it might take longer than a few 0.1 ms.

        Raises:
            InvalidInput: As above.
        """
        if len(data) > SMALL_BYTES:
            return None
        image = self._open(data)
        if image.width * image.height > SMALL_PIXELS:
            image.close()
            return None
        return self._prepared(image)

    @property
    def example(self) -> State:
        """A row to warm up and to measure with."""
        return (np.zeros((1, 3, self.height, self.width), np.float32),)

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """Bytes to an upright RGB image of the input's size, (H, W, 3).

        Transparency becomes white.

        Raises:
            InvalidInput: If they are no image, a damaged one, or one of too many pixels.
        """
        return self._decoded(self._open(data))[0]

    def _prepared(self, image: Image.Image) -> ModelInput:
        pixels, size = self._decoded(image)
        return ModelInput((self.normalise(pixels[None]),), size=size)

    def _decoded(self, image: Image.Image) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """The image (H, W, 3), and width and height that it came in; closes the image."""
        with image:
            turn = _orientation(image)
            size = image.size[::-1] if turn in TURNED else image.size
            try:
                image.draft(None, (DRAFT_FACTOR * self.width, DRAFT_FACTOR * self.height))
                image.load()
                shrunk = self._shrunk(image)
                rgb = _to_rgb(shrunk if turn is None else shrunk.transpose(UPRIGHT[turn]))
            except Exception as error:  # decoders of damaged files raise a dozen types
                raise InvalidInput(
                    f"the {image.format} image is damaged or cut off: {error}"
                ) from error
        wanted = (self.width, self.height)
        if rgb.size != wanted and self.fit == "stretch":
            rgb = rgb.resize(wanted, Image.Resampling.BICUBIC)
        elif rgb.size != wanted:
            rgb = ImageOps.fit(rgb, wanted, Image.Resampling.BICUBIC)
        return np.asarray(rgb), size

    def normalise(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images (N, H, W, 3) to network input (N, 3, H, W)."""
        planes = np.empty((len(images), 3, *images.shape[1:3]), np.float32)
        for channel, levels in enumerate(self._levels):
            np.take(levels, images[..., channel], out=planes[:, channel])
        return planes

    def _shrunk(self, image: Image.Image) -> Image.Image:
        """Cut away what no crop will use and shrink, before anything makes a copy of it all.

        What is left covers the final crop either way up, at `DRAFT_FACTOR` times the input's size
        or more; images smaller than that stay untouched.
        """
        small, large = sorted((self.width, self.height))
        short = min(image.size)
        if self.fit == "stretch":
            factor = short // (DRAFT_FACTOR * large)
            return image.reduce(factor) if factor > 1 and image.mode == "RGB" else image
        keep = -(-short * large // small)
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
        return image.resize(size, Image.Resampling.NEAREST)  # palettes and 16 bits do not average

    def _open(self, data: bytes) -> Image.Image:
        if not data:
            raise InvalidInput("the image is empty; send the bytes of a image file")
        if has_too_many_scans(data):
            raise InvalidInput(
                f"the JPEG has more than {MAX_SCANS} scans, the limit here; save it again with "
                f"fewer, or as a baseline JPEG"
            )
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            # Pillow's own, higher limit; the warning is raised only where warnings are errors.
            raise InvalidInput(
                f"the image has more than {self.max_pixels} pixels, the limit here; scale it "
                f"down first"
            ) from error
        except Exception as error:
            raise InvalidInput(
                f"the bytes are no image of a known format ({', '.join(FORMATS)})"
            ) from error
        width, height = image.size
        if width * height > self.max_pixels:
            image.close()
            raise InvalidInput(
                f"the image is {width}x{height}, more than {self.max_pixels} pixels, the limit "
                f"here; scale it down first"
            )
        return image


@dataclass(frozen=True)
class TextPreprocessor:
    """Tokenises a text, cut at the model's limit.

    Attributes:
        tokenizer: Path of a `tokenizer.json`.
        max_tokens: The most tokens of a row, special ones included.
        pad_id: Token id that fills rows up; the mask tells it from text.
        length_step: Rows are filled up to a multiple of it, so that they meet others of their
            length in a batch.
        typical_tokens: Length of the row that costs are measured with.
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
            raise ValueError(f"{self.tokenizer} is no tokenizer: {error}") from error
        tokenizer.enable_truncation(self.max_tokens)
        tokenizer.no_padding()
        object.__setattr__(self, "_tokenizer", tokenizer)

    def __call__(self, text: str) -> ModelInput:
        """Text to token ids and mask, (1, L) int64 each.

        Raises:
            InvalidInput: If the text is empty or no Unicode.
        """
        most = CHARACTERS_A_TOKEN * self.max_tokens
        if not text[:most].strip():
            raise InvalidInput("the text is empty; send at least one word")
        try:
            encoding = self._tokenizer.encode(text[:most])
        except (TypeError, UnicodeError) as error:
            raise InvalidInput("the text holds half a character; send valid Unicode") from error
        if not encoding.ids:
            raise InvalidInput(
                "the text holds nothing that the model reads; send at least one word"
            )
        step = self.length_step
        width = min(-(-len(encoding.ids) // step) * step, self.max_tokens)
        state = self._filled([encoding.ids], width)
        return ModelInput(state, bool(encoding.overflowing) or len(text) > most)

    def quickly(self, text: str) -> ModelInput | None:
        """The same for short texts; None where it might take longer than a few 0.1 ms.

        Raises:
            InvalidInput: As above.
        """
        return self(text) if len(text) <= SMALL_CHARACTERS else None

    @property
    def example(self) -> State:
        """A row to warm up and to measure with."""
        ids = np.full((1, self.typical_tokens), self.pad_id, np.int64)
        return ids, np.ones_like(ids)

    def batch(self, texts: Sequence[str]) -> State:
        """Texts (N) to token ids and mask, (N, L) int64 each, as long as the longest."""
        most = CHARACTERS_A_TOKEN * self.max_tokens
        cut = [text[:most] for text in texts]
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(cut)]
        return self._filled(rows, max(map(len, rows)))

    def _filled(self, rows: Sequence[Sequence[int]], width: int) -> State:
        ids = np.full((len(rows), width), self.pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return ids, mask


def has_too_many_scans(data: bytes) -> bool:
    """Whether a file is a JPEG of more scans than are decoded.

    A count of the marker's two bytes settles most files. Embedded previews, and films after the
    image, hold them too, so beyond the limit the segments are followed as a decoder does.
    """
    if not data.startswith(JPEG_START) or _scan_marks(data) <= MAX_SCANS:
        return False
    position = scans = 0
    for _ in range(MAX_SEGMENTS):
        segment = JPEG_SEGMENT.search(data, position)
        if segment is None or segment[0] == JPEG_END:
            return False
        scans += segment[0] == JPEG_SCAN
        if scans > MAX_SCANS:
            return True
        at = segment.end()
        position = at + max(int.from_bytes(data[at : at + 2], "big"), 2)
    return True


def _scan_marks(data: bytes) -> int:
    """How often the two bytes of the marker occur; ten times as fast as `bytes.count`."""
    if len(data) <= SMALL_BYTES:
        return len(JPEG_SCAN_MARK.findall(data))
    mark = int.from_bytes(JPEG_SCAN, "little")
    pairs = [np.frombuffer(data, "<u2", (len(data) - at) // 2, at) for at in (0, 1)]
    return sum(int(np.count_nonzero(each == mark)) for each in pairs)


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Width and height once the image is turned as its EXIF orientation says."""
    return image.size[::-1] if _orientation(image) in TURNED else image.size


def _orientation(image: Image.Image) -> int | None:
    """EXIF's, where it is another than upright; unreadable EXIF turns nothing."""
    with contextlib.suppress(Exception):
        turn = image.getexif().get(ExifTags.Base.Orientation)
        return turn if turn in UPRIGHT else None
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
