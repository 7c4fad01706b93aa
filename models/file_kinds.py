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


def brand_of(data: bytes) -> bytes | None:
    """Return the brand of a file of boxes (HEIC, AVIF, MP4); None for any other."""
    return data[8:12] if data[4:8] == b"ftyp" else None


def is_avif(data: bytes) -> bool:
    """Whether the bytes begin as an AVIF does."""
    return brand_of(data) in AVIF_BRANDS or (
        brand_of(data) in (b"mif1", b"msf1") and b"avif" in data[16:64]
    )


def is_image(data: bytes) -> bool:
    """Whether the first bytes of a file, 12 or more, are those of an image, read here or not."""
    return (
        data.startswith(IMAGES)
        or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
        or brand_of(data) in (*AVIF_BRANDS, *HEIC_BRANDS)
    )


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
