import pytest
from PIL import Image

from models.webp import is_webp, size_of
from tests.models.image_files import encode, smooth


@pytest.mark.parametrize("size", [(1, 1), (300, 7), (16383, 2)])
@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"lossless": False}, {"lossless": True, "exif": b"Exif\0\0MM"}]
)
def test_the_size_is_pillows(size: tuple[int, int], options: dict[str, object]) -> None:
    data = encode(Image.new("RGB", size, (9, 200, 30)), "WEBP", **options)
    assert is_webp(data) and size_of(data) == size


def test_a_cut_off_header_has_no_size() -> None:
    data = encode(smooth(), "WEBP")
    assert all(size_of(data[:cut]) is None for cut in range(26))
    assert not is_webp(encode(smooth()))
