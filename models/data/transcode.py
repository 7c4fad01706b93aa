"""Turn TIFF and HEIC files of datasets into PNG, which the server's own decoder reads.

A server refuses both formats by name: their readers are large and slow. A dataset is read once, and
by its owner.
"""

import io
import warnings

from PIL import Image, ImageOps

from models.file_kinds import is_heic, is_lfs_pointer, is_tiff
from models.preprocess import InvalidInput

KEPT_MODES = ("1", "L", "LA", "RGB", "RGBA", "P", "I;16")


def to_known_format(data: bytes) -> bytes:
    """Return an image as it is, or as a PNG if it is a TIFF (its first page) or an HEIC.

    Raises:
        InvalidInput: If it is damaged, a pointer of Git LFS, or an HEIC without the extra for it.
    """
    if is_tiff(data):
        return _to_png(_open_tiff(data))
    if is_heic(data):
        return _to_png(_open_heic(data))
    if is_lfs_pointer(data):
        raise InvalidInput("it is a Git LFS pointer, not the image; run `git lfs pull` there")
    return data


def _open_tiff(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings(action="ignore"):  # of tags that no reader needs
            image = Image.open(io.BytesIO(data), formats=("TIFF",))
            image.load()
    except Exception as error:  # Pillow raises a dozen types on damaged files
        raise InvalidInput(f"the TIFF image is damaged or cut off: {error}") from error
    return image


def _open_heic(data: bytes) -> Image.Image:
    try:
        import pi_heif  # type: ignore[import-untyped]
    except ImportError as error:
        raise InvalidInput(
            "it is an HEIC image, which needs the extra `heic` (pip install pi-heif); or convert "
            "it to JPEG"
        ) from error
    try:
        image: Image.Image = pi_heif.open_heif(io.BytesIO(data)).to_pillow()
    except Exception as error:  # libheif raises types of its own
        raise InvalidInput(f"the HEIC image is damaged or cut off: {error}") from error
    return image


def _to_png(image: Image.Image) -> bytes:
    """Encode an upright image, with its colour profile."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode not in KEPT_MODES:
        upright = upright.convert("RGB")
    file = io.BytesIO()
    upright.save(file, "PNG", compress_level=1, icc_profile=image.info.get("icc_profile"))
    return file.getvalue()
