import zlib

import pytest

from models.orientation import Metadata
from models.png import MAX_CHUNKS, MAX_TEXT_BYTES, split_metadata
from tests.models.image_files import encode, exif_of, png_with, smooth

PLAIN = png_with([])
XMP = b'<x tiff:Orientation="6"/>'


def test_metadata_are_taken_out_and_what_turns_the_image_is_kept() -> None:
    exif = exif_of(8)
    odd = png_with(
        [
            (b"tEXt", b"Title\0a ship"),
            (b"eXIf", exif),
            (b"iCCP", b"profile\0\0" + zlib.compress(bytes(9))),
            (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
            (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(9))),
        ]
    )
    assert split_metadata(odd) == Metadata(PLAIN, exif, XMP, zlib.compress(bytes(9)), True)
    assert split_metadata(PLAIN) == Metadata(PLAIN, None, None)
    assert split_metadata(encode(smooth())).file == encode(smooth())


def test_what_gives_colours_stays() -> None:
    kept = png_with([(b"gAMA", bytes(4)), (b"tRNS", bytes(6))])
    assert split_metadata(kept).file == kept


def test_a_gamma_counts_unless_something_else_tells_the_colours() -> None:
    gamma = (b"gAMA", (100_000).to_bytes(4, "big"))
    profile = (b"iCCP", b"profile\0\0" + zlib.compress(bytes(9)))
    assert split_metadata(png_with([gamma])).gamma == 1
    for over in ((b"sRGB", b"\0"), profile):
        assert split_metadata(png_with([gamma, over])).gamma is None
    assert split_metadata(png_with([(b"gAMA", bytes(9))])).gamma is None


def test_metadata_behind_the_pixels_count_too() -> None:
    begin, end = PLAIN[:-12], PLAIN[-12:]
    exif = png_with([(b"eXIf", exif_of(6))])[33:][: 12 + len(exif_of(6))]
    assert split_metadata(begin + exif + end) == Metadata(PLAIN, exif_of(6), None)


@pytest.mark.parametrize("packed", [False, True])
def test_packed_texts_are_unpacked_at_their_beginning_only(packed: bool) -> None:
    raw = b"\nexif\n  26\n" + exif_of(6).hex().encode()
    long = XMP + bytes(10 * MAX_TEXT_BYTES)
    if packed:
        chunks = [
            (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
            (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(long)),
        ]
    else:
        chunks = [(b"tEXt", b"Raw profile type exif\0" + raw)]
        chunks += [(b"iTXt", b"XML:com.adobe.xmp\0\0\0en\0name\0" + long)]
    metadata = split_metadata(png_with(chunks))
    assert metadata.exif == exif_of(6) and (metadata.xmp or b"").startswith(XMP)
    assert len(metadata.xmp or b"") <= (MAX_TEXT_BYTES if packed else len(long))


def test_damaged_packed_texts_are_passed_over() -> None:
    chunks = [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0nonsense"), (b"iTXt", b"")]
    chunks += [(b"zTXt", b"Raw profile type exif\0\0nonsense")]
    metadata = split_metadata(png_with(chunks))
    assert metadata.file == PLAIN and not metadata.exif and not metadata.xmp


def test_a_cut_off_file_is_left_to_the_decoder() -> None:
    for cut in range(8, len(PLAIN)):
        assert split_metadata(PLAIN[:cut]).file == PLAIN[:cut]


def test_too_many_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 10000 chunks; save it again"):
        split_metadata(png_with([(b"abCd", b"")] * MAX_CHUNKS))
