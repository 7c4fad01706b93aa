import pytest

from models.file_kinds import begins_as_image, is_avif, kind_of
from models.images import ImageDecoder, InvalidInput
from tests.models.image_files import encode, smooth

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (HEIC, "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99), "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(99), "a video"),
        (encode(smooth(), "TIFF"), "a TIFF"),
        (encode(smooth(), "ICO"), "ICO"),
        (encode(smooth(), "JPEG2000"), "JPEG 2000"),
        (b"\xff\x0a" + bytes(99), "JPEG XL"),
        (b"%PDF-1.7", "a PDF"),
        (b"  <!DOCTYPE html><html>", "an HTML page"),
        (b"<svg xmlns=''/>", "an SVG"),
        (b"PK\3\4" + bytes(99), "a ZIP archive"),
        (b"https://example.com/a.jpg", "a URL"),
    ],
)
def test_a_file_that_is_not_read_is_refused_by_name(data: bytes, kind: str) -> None:
    assert kind in (kind_of(data) or "")
    with pytest.raises(InvalidInput, match="which is not read; convert it to JPEG or PNG") as error:
        ImageDecoder(32, 32).decode(data)
    assert kind in str(error.value)


def test_an_avif_is_told_from_a_heic() -> None:
    assert is_avif(encode(smooth(), "AVIF")) and not is_avif(HEIC)
    assert is_avif(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(99))
    assert kind_of(b"hello") is None


@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "AVIF", "TIFF", "JPEG2000"]
)
def test_an_image_is_known_by_its_first_bytes(format: str) -> None:
    assert begins_as_image(encode(smooth(), format))


@pytest.mark.parametrize(
    "data",
    [b"", b"BM", b"BMW shares fell on Tuesday", b"RIFF\0\0\0\0WAVE", b'{"text": "Oil"}',
     b"text=Oil+prices", b"\xff\xfeO\0i\0l\0", b"%PDF-1.7", b"<svg xmlns=''/>"],
)  # fmt: skip
def test_other_bytes_are_none(data: bytes) -> None:
    assert not begins_as_image(data)
