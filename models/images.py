"""Decode image files to upright RGB of a network's input size, within bounds."""

import io
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from models import colour, file_kinds, jpeg, png, webp
from models.orientation import SIDEWAYS, UPRIGHT, Metadata, orientation_of, read_orientation

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
# Large images are averaged down to at least this multiple of the input's size, then resized.
SHRINK_FACTOR = 4
# A JPEG is even decoded at 1/2, 1/4 or 1/8 of its size. Where that leaves fewer pixels than this on
# the short side, it keeps the multiple above: fine lines suffer, and there is little time to gain.
JPEG_FACTOR, JPEG_SIDE = 1.6, 256
# A decoder visits all blocks of a JPEG for each scan, even if the scan is nearly empty. Encoders
# write about 10 scans, those that optimise for size some 20.
MAX_SCANS = 32
# No photo comes near, only blank images: a white PNG has 340, but a WebP of 34 bytes has millions.
MAX_PIXELS_PER_BYTE = 1000
FEW_PIXELS = 4_000_000  # cost little, however few bytes they came in
# Pixels times scans, as a multiple of the largest image: an image of that size may have 10 scans.
MAX_PASSES = 10
SMALL_BYTES, SMALL_PIXELS, SMALL_MS = 8192, 64 * 64, 0.5  # about 0.2 ms of decoding
# Decoding takes longer where its time, expected from these rounded-up measurements, is above this.
SLOW_MS = 100.0
NS_PER_PIXEL = {"PNG": 30.0, "WEBP": 30.0, "GIF": 10.0, "BMP": 3.0, "JPEG": 5.0, "AVIF": 20.0}
NS_PER_PIXEL_AND_SCAN = 1.5  # of each scan of a JPEG after the first
NS_PER_ARITHMETIC_BYTE = 100.0
SLOW_GIF_BYTES = 256 * 1024  # Pillow walks over blocks of 1 to 255 bytes before it knows the size
RLE = (1, 2)  # ways to compress a BMP that Pillow reads in Python, 0.5 us a byte


class InvalidInput(ValueError):
    """The input cannot be decoded; the message says why.

    Args:
        sentence: The message.
        bound: Which bound on images it passes, for metrics; None if it is damaged or unknown.
    """

    def __init__(self, sentence: str, bound: str | None = None) -> None:
        super().__init__(sentence)
        self.bound = bound


class DecodedImage(NamedTuple):
    """An image as a network takes it.

    Attributes:
        pixels: RGB of the input's size, (H, W, 3).
        size: Width and height of the upright original.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]


class Postponed(NamedTuple):
    """What it takes to decode an image that was not decoded yet, by its header."""

    pixels: int
    expected_ms: float


class _Opened(NamedTuple):
    """An image whose header is read: how to turn it upright, what its colours mean, what it takes.

    The colour profile of a PNG is still packed if `packed`.
    """

    image: Image.Image
    orientation: int | None
    icc: bytes | None
    packed: bool
    gamma: float | None
    expected_ms: float

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.image.width * self.image.height

    def colours(self) -> colour.ColourSpace | None:
        """Return the colour space, unless it is sRGB."""
        icc = self.icc
        if icc is not None and self.packed:
            icc = png.unpack(icc)
        return colour.space_of(colour.Profile(icc, self.gamma))


@dataclass(frozen=True)
class ImageDecoder:
    """Decodes an image of any size and mode to the size of a network's input.

    Attributes:
        height: Height of the network's input.
        width: Width of the network's input.
        fit: `cover`: scale to cover the input and crop to the centre; `stretch`: scale each side
            separately, so that no part of the image is lost.
        max_pixels: Largest image that is decoded, checked in its header.
        max_pixels_per_byte: Most pixels per byte of the file, for images of above 4 million pixels.
        max_scans: Most scans of a JPEG.
        crop: Share of the image's sides that is kept, of the crop to the centre where there is one.
    """

    height: int
    width: int
    fit: Literal["cover", "stretch"] = "cover"
    max_pixels: int = 50_000_000
    max_pixels_per_byte: int = MAX_PIXELS_PER_BYTE
    max_scans: int = MAX_SCANS
    crop: float = 1.0

    def decode(self, data: bytes) -> DecodedImage:
        """Decode an image; transparent pixels become white.

        Raises:
            InvalidInput: If the bytes are not an image, the image is damaged, or it is beyond a
                bound on pixels and scans.
        """
        return self._decode_plain(data, self.max_pixels) or self._to_pixels(self._open(data))

    def decode_if_fast(self, data: bytes, most_ms: float = SLOW_MS) -> DecodedImage | Postponed:
        """Decode an image, unless its header says that this may take longer than `most_ms`.

        Raises:
            InvalidInput: As for `decode`.
        """
        plain = self._decode_plain(data, self.max_pixels, most_ms)
        if plain is not None:
            return plain
        if _costly_to_open(data):
            return Postponed(self.max_pixels, math.inf)
        opened = self._open(data)
        if opened.expected_ms > most_ms:
            opened.image.close()
            return Postponed(opened.pixels, opened.expected_ms)
        return self._to_pixels(opened)

    def decode_if_small(self, data: bytes) -> DecodedImage | None:
        """Decode a small image; return None if decoding may take more than a few 0.1 ms.

        Raises:
            InvalidInput: As for `decode`.
        """
        if len(data) > SMALL_BYTES:
            return None
        plain = self._decode_plain(data, min(SMALL_PIXELS, self.max_pixels))
        if plain is not None:
            return plain
        if _costly_to_open(data):
            return None
        if webp.is_webp(data) and math.prod(webp.size_of(data) or (0, 0)) > SMALL_PIXELS:
            return None  # opening it reserves memory for all of its pixels
        opened = self._open(data)
        is_plain = opened.gamma is None or colour.is_srgb_gamma(opened.gamma)
        has_colours = opened.icc is not None or not is_plain
        if opened.pixels > SMALL_PIXELS or opened.expected_ms > SMALL_MS or has_colours:
            opened.image.close()
            return None
        return self._to_pixels(opened)

    def _decode_plain(
        self, data: bytes, most_pixels: int, most_ms: float = SLOW_MS
    ) -> DecodedImage | None:
        """Decode a JPEG without metadata at its full size; None for other and slow files.

        The pixels are Pillow's, in a tenth of its time for small images.
        """
        size = jpeg.plain_size(data)
        if size is None or self._jpeg_scale(size) > 1:
            return None
        count = size[0] * size[1]
        if count > most_pixels or count * NS_PER_PIXEL["JPEG"] / 1e6 > most_ms:
            return None
        if count > max(self.max_pixels_per_byte * len(data), FEW_PIXELS):
            return None  # to be refused
        try:
            pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
        except ValueError:
            return None  # damaged or rare; Pillow decides, and words the refusal
        if size != (self.width, self.height) or self.crop < 1:
            pixels = np.asarray(self._resize(self._shrink(Image.fromarray(pixels))))
        return DecodedImage(pixels, size)

    def _to_pixels(self, opened: _Opened) -> DecodedImage:
        image, orientation = opened.image, opened.orientation
        with image:
            size = image.size[::-1] if orientation in SIDEWAYS else image.size
            try:
                scale = self._jpeg_scale(image.size)
                image.draft(None, (image.width // scale, image.height // scale))
                image.load()
                small = self._shrink(image)
                rgb = _to_rgb(
                    small if orientation is None else small.transpose(UPRIGHT[orientation])
                )
            except Exception as error:  # Pillow raises a dozen types on damaged files
                raise InvalidInput(
                    f"the {image.format} image is damaged or cut off: {error}"
                ) from error
        pixels, colours = np.asarray(self._resize(rgb)), opened.colours()
        return DecodedImage(pixels if colours is None else colours.to_srgb(pixels), size)

    def _resize(self, rgb: Image.Image) -> Image.Image:
        target = (self.width, self.height)
        if rgb.size == target and self.crop == 1:
            return rgb
        margin = (1 - self.crop) / 2
        if self.fit == "stretch":
            left, top = margin * rgb.width, margin * rgb.height
            box = (left, top, rgb.width - left, rgb.height - top)
            return rgb.resize(target, Image.Resampling.BICUBIC, box)
        return ImageOps.fit(rgb, target, Image.Resampling.BICUBIC, margin)

    def _jpeg_scale(self, size: tuple[int, int]) -> int:
        """By how much a JPEG's sides may be divided while it is decoded: 1, 2, 4 or 8."""
        side = max(self.width, self.height)  # on both axes, for the image may be turned
        least = max(JPEG_FACTOR * side, min(SHRINK_FACTOR * side, JPEG_SIDE))
        short = self.crop * min(size)
        return next((scale for scale in (8, 4, 2) if short >= scale * least), 1)

    def _shrink(self, image: Image.Image) -> Image.Image:
        """Crop margins that the final crop will not use and shrink, before any full-size copy.

        The result covers the final crop in either orientation, at `SHRINK_FACTOR` times the input's
        size or more. Smaller images stay as they are.
        """
        small, large = sorted((self.width, self.height))
        short = min(image.size)
        if self.fit == "stretch":
            factor = int(self.crop * short) // (SHRINK_FACTOR * large)
            return image.reduce(factor) if factor > 1 and image.mode == "RGB" else image
        keep = -(-short * large // small)  # rounded up
        margins = [max((side - keep) // 2, 0) for side in image.size]
        if any(margins):
            left, top = margins
            image = image.crop((left, top, image.width - left, image.height - top))
        factor = int(self.crop * short) // (SHRINK_FACTOR * large)
        if factor < 2:
            return image
        if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
            return image.reduce(factor)
        size = (max(image.width // factor, 1), max(image.height // factor, 1))
        # Palette indices and 16-bit values cannot be averaged.
        return image.resize(size, Image.Resampling.NEAREST)

    def _open(self, data: bytes) -> _Opened:
        """Read an image's header and check all bounds; nothing is decoded yet."""
        if not data:
            raise InvalidInput("the image is empty; send the bytes of an image file")
        if webp.is_webp(data):
            self._check_size(webp.size_of(data) or (0, 0), len(data))
        metadata = _split_metadata(data)
        file = data if metadata is None else metadata.file
        try:
            image = Image.open(io.BytesIO(file), formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            # Pillow's own limit is higher; its warning is raised only if warnings are errors.
            raise InvalidInput(
                f"the image has more than the allowed {self.max_pixels} pixels; scale it down",
                "image_pixels",
            ) from error
        except Exception as error:
            raise _not_an_image(data) from error
        try:
            self._check_size(image.size, len(data))
            orientation = (
                orientation_of(image)
                if metadata is None
                else read_orientation(metadata.exif, metadata.xmp)
            )
            expected_ms = self._expected_ms(image, file)
        except InvalidInput:
            image.close()
            raise
        if metadata is None:
            icc = image.info.get("icc_profile")
            return _Opened(image, orientation, icc or None, False, None, expected_ms)
        colours = metadata.icc, metadata.packed, metadata.gamma
        return _Opened(image, orientation, *colours, expected_ms)

    def _check_size(self, size: tuple[int, int], file_bytes: int) -> None:
        """Refuse too many pixels."""
        width, height = size
        pixels = width * height
        if pixels > self.max_pixels:
            raise InvalidInput(
                f"the image is {width}x{height}, more than the allowed {self.max_pixels} pixels; "
                f"scale it down",
                "image_pixels",
            )
        if pixels > max(self.max_pixels_per_byte * file_bytes, FEW_PIXELS):
            raise InvalidInput(
                f"the image is {width}x{height} in {file_bytes} bytes, more than the allowed "
                f"{self.max_pixels_per_byte} pixels per byte; scale it down",
                "image_pixels_per_byte",
            )

    def _expected_ms(self, image: Image.Image, data: bytes) -> float:
        """Refuse too many scans; return a rough time for decoding."""
        pixels, kind = image.width * image.height, image.format or "JPEG"
        ms = pixels * NS_PER_PIXEL[kind] / 1e6
        if kind == "JPEG":
            ms += pixels * NS_PER_PIXEL_AND_SCAN * (self._count_scans(image, data) - 1) / 1e6
            if jpeg.may_be_arithmetic(data):
                ms += len(data) * NS_PER_ARITHMETIC_BYTE / 1e6
        elif kind == "BMP" and image.info.get("compression") in RLE:
            return math.inf  # no header tells how long that takes, so it must be killable
        return ms

    def _count_scans(self, image: Image.Image, data: bytes) -> int:
        """Return how often a decoder visits each pixel of a JPEG; refuse too many times."""
        pixels = image.width * image.height
        scans = max(jpeg.count_scan_markers(data), 1)
        most = min(self.max_scans, max(MAX_PASSES * self.max_pixels // pixels, 1))
        if scans > most or pixels * scans * NS_PER_PIXEL_AND_SCAN / 1e6 > SLOW_MS:
            scans = jpeg.count_scans(data, most)
        if scans > most:
            raise InvalidInput(
                f"the JPEG has more than {most} scans, the most for {image.width}x{image.height} "
                f"pixels; save it with fewer scans or as a baseline JPEG",
                "image_scans",
            )
        return scans


def _costly_to_open(data: bytes) -> bool:
    """Whether to leave even the header of a file to a process that can be killed.

    Pillow walks over a GIF in Python, and libavif parses all of an AVIF.
    """
    return (len(data) > SLOW_GIF_BYTES and data.startswith(b"GIF8")) or file_kinds.is_avif(data)


def _not_an_image(data: bytes) -> InvalidInput:
    kind, formats = file_kinds.kind_of(data), ", ".join(FORMATS)
    if kind is not None:
        return InvalidInput(
            f"the image is {kind}, which is not read; convert it to JPEG or PNG (known formats: "
            f"{formats})"
        )
    return InvalidInput(f"the bytes are not an image of a known format; send one of {formats}")


def _split_metadata(data: bytes) -> Metadata | None:
    """Take out what decoders need not read; None for formats whose metadata cost nothing."""
    try:
        if data.startswith(jpeg.START):
            return jpeg.split_metadata(data)
        if data.startswith(png.START):
            return png.split_metadata(data)
    except ValueError as error:
        raise InvalidInput(str(error), "image_parts") from error
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
