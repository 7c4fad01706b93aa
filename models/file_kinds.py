"""Names what a file is that is no image of a known format, so that a refusal can say it."""

AVIF_BRANDS = (b"avif", b"avis")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
BEGINNINGS = {
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"II+\0": "a TIFF",
    b"MM\0+": "a TIFF",
    b"\0\0\1\0": "an icon (ICO)",
    b"\0\0\2\0": "a cursor (CUR)",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\xff\x0a": "a JPEG XL",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"version https://git-lfs": "a Git LFS pointer",
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "compressed by gzip",
    b"<svg": "an SVG",
    b"<?xml": "XML, perhaps an SVG",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"data:": "a data: URL",
    b"http:": "a URL",
    b"https:": "a URL",
}
IMAGE_BEGINNINGS = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"GIF87a", b"GIF89a"),
    *(
        begin
        for begin, kind in BEGINNINGS.items()
        if kind in ("a TIFF", "a JPEG 2000", "a JPEG XL")
    ),
)


def brand_of(data: bytes) -> bytes | None:
    """Return the brand of a file of boxes (HEIC, AVIF, MP4); None for any other."""
    return data[8:12] if data[4:8] == b"ftyp" else None


def is_avif(data: bytes) -> bool:
    """Whether the bytes begin as an AVIF does."""
    return brand_of(data) in AVIF_BRANDS or (
        brand_of(data) in (b"mif1", b"msf1") and b"avif" in data[16:64]
    )


def begins_as_image(data: bytes) -> bool:
    """Whether the bytes begin as an image file does, of a format that is read or is not."""
    if data.startswith(b"RIFF"):
        return data[8:12] == b"WEBP"
    if data.startswith(b"BM"):  # as texts do; behind it are the size and four bytes of nothing
        return data[6:10] == bytes(4)
    return data.startswith(IMAGE_BEGINNINGS) or brand_of(data) is not None


def is_lfs_pointer(data: bytes) -> bool:
    """Whether the bytes are what Git leaves in place of a large file that was not fetched."""
    return data.startswith(b"version https://git-lfs.github.com/spec/")


def is_tiff(data: bytes) -> bool:
    """Whether the bytes begin as a TIFF does."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_heic(data: bytes) -> bool:
    """Whether the bytes begin as an HEIC does."""
    return brand_of(data) in HEIC_BRANDS and not is_avif(data)


def kind_of(data: bytes) -> str | None:
    """Say what a file is that is not read, as in "a TIFF"; None if that is unknown."""
    brand = brand_of(data)
    if brand is not None:
        return "an HEIC image" if brand in HEIC_BRANDS else "a video"
    lower = data[:16].lstrip().lower()
    for beginning, kind in BEGINNINGS.items():
        if data.startswith(beginning) or lower.startswith(beginning):
            return kind
    return None
