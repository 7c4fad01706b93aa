"""From the bytes a client sends to what stage 0 reads."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
DRAFT_FACTOR = (
    4  # a large JPEG is decoded at a fraction of its size, but at least at this multiple of ours
)


class UndecodableImage(ValueError):
    """The bytes are no picture that we read; the sentence says why."""


@dataclass(frozen=True)
class ImagePreprocessor:
    """Decodes a picture of any size and mode and normalises it.

    Attributes:
        height: Of the network's input.
        width: Of the network's input.
        mean: Per channel, on a scale of 0 to 1.
        std: Per channel.
        max_pixels: Largest picture that is decoded, judged by its header.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    max_pixels: int = 50_000_000

    def __call__(self, data: bytes) -> NDArray[np.float32]:
        """Bytes to network input, (1, 3, H, W).

        Raises:
            UndecodableImage: If they are no picture, a damaged one, or one of too many pixels.
        """
        return self.normalise(self.decode(data)[None])

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """Bytes to an upright RGB picture of the input's size, (H, W, 3).

        It is scaled to cover the input and cut to its middle; transparency becomes white.

        Raises:
            UndecodableImage: If they are no picture, a damaged one, or one of too many pixels.
        """
        if not data:
            raise UndecodableImage("the image is empty; send the bytes of a picture file")
        image = self._open(data)
        with image:
            try:
                image.draft(None, (DRAFT_FACTOR * self.width, DRAFT_FACTOR * self.height))
                image.load()
                rgb = _to_rgb(_upright(self._shrunk(image)))
            except Exception as error:  # decoders of damaged files raise a dozen types
                raise UndecodableImage(
                    f"the {image.format} image is damaged or cut off: {error}"
                ) from error
        if rgb.size != (self.width, self.height):
            rgb = ImageOps.fit(rgb, (self.width, self.height), Image.Resampling.BICUBIC)
        return np.asarray(rgb)

    def normalise(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images (N, H, W, 3) to network input (N, 3, H, W)."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        scaled = (images.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def _shrunk(self, image: Image.Image) -> Image.Image:
        """Cut away what no crop will use and shrink, before anything makes a copy of it all.

        What is left covers the final crop either way up, at `DRAFT_FACTOR` times the input's size
        or more; pictures smaller than that stay untouched.
        """
        small, large = sorted((self.width, self.height))
        short = min(image.size)
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
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            # Pillow's own, higher limit; the warning is raised only where warnings are errors.
            raise UndecodableImage(
                f"the image has more than {self.max_pixels} pixels, the limit here; scale it "
                f"down first"
            ) from error
        except Exception as error:
            raise UndecodableImage(
                f"the bytes are no image of a known format ({', '.join(FORMATS)})"
            ) from error
        width, height = image.size
        if width * height > self.max_pixels:
            image.close()
            raise UndecodableImage(
                f"the image is {width}x{height}, more than {self.max_pixels} pixels, the limit "
                f"here; scale it down first"
            )
        return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF is no reason to refuse pixels that are already decoded
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey in a 16 or 32 bit integer
        grey = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
