"""Measure how long images take to decode, and how far the fast ways differ from the whole one.

    .venv/bin/python -m benchmarks.decoding

Small images are this repository's test images; large ones are made of them, side by side. JSON on
the last line.
"""

import io
from functools import partial
from itertools import cycle

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.harness import (
    Figures,
    image_files,
    lower_quartiles,
    make_parser,
    print_figures,
    print_report,
)
from models.images import ImageDecoder
from server.decode_helper import DecodeHelper

ROUNDS, SMOKE_ROUNDS = 3000, 20
SMALL, LARGE = 32, 224  # sides of a network's input
LARGE_SIZE = (1000, 750)
TIMEOUT_S = 10.0


def main() -> None:
    """Measure and print."""
    smoke: bool = make_parser(__doc__).parse_args().smoke
    rounds = SMOKE_ROUNDS if smoke else ROUNDS
    files = image_files(20 if smoke else None)
    figures: Figures = {
        "small": small_figures(files, rounds),
        "large": large_figures(mosaic(files), max(rounds // 20, 5)),
        "helper": helper_figures(files[0], max(rounds // 10, 5)),
    }
    print_figures(figures)
    print_report(figures, smoke=smoke)


def small_figures(files: list[bytes], rounds: int) -> Figures:
    """Plain JPEGs of the input's size, by both decoders."""
    decoder, turns, same = ImageDecoder(SMALL, SMALL), cycle(files), cycle(files)
    fast_s, pillow_s = lower_quartiles(
        [lambda: decoder.decode(next(turns)), lambda: by_pillow(decoder, next(same))], rounds
    )
    furthest = max(
        int(np.abs(decoder.decode(file).pixels.astype(int) - by_pillow(decoder, file)).max())
        for file in files
    )
    return {"us": fast_s * 1e6, "pillow_us": pillow_s * 1e6, "furthest_of_255": furthest}


def by_pillow(decoder: ImageDecoder, file: bytes) -> NDArray[np.uint8]:
    """Decode as every file that is not a plain JPEG is decoded."""
    return decoder._to_pixels(decoder._open(file)).pixels


def large_figures(file: bytes, rounds: int) -> Figures:
    """A large JPEG, decoded at a fraction of its size and whole."""
    decoder = ImageDecoder(LARGE, LARGE)
    reduced_s, whole_s = lower_quartiles(
        [partial(decoder.decode, file), partial(whole, file)], rounds
    )
    difference = np.abs(decoder.decode(file).pixels.astype(int) - whole(file))
    return {
        "ms": reduced_s * 1e3,
        "whole_ms": whole_s * 1e3,
        "mean_of_255": float(difference.mean()),
        "p99_of_255": float(np.percentile(difference, 99)),
    }


def whole(file: bytes) -> NDArray[np.uint8]:
    """Decode at the full size, then resize."""
    with Image.open(io.BytesIO(file)) as image:
        fitted = ImageOps.fit(image, (LARGE, LARGE), Image.Resampling.BICUBIC)
    return np.asarray(fitted)


def mosaic(files: list[bytes]) -> bytes:
    """A JPEG of the large size: test images side by side, each enlarged fourfold."""
    tiles, side = cycle(files), 4 * SMALL
    canvas = Image.new("RGB", LARGE_SIZE)
    for left in range(0, LARGE_SIZE[0], side):
        for top in range(0, LARGE_SIZE[1], side):
            with Image.open(io.BytesIO(next(tiles))) as tile:
                canvas.paste(tile.resize((side, side), Image.Resampling.BICUBIC), (left, top))
    stream = io.BytesIO()
    canvas.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def helper_figures(file: bytes, rounds: int) -> Figures:
    """What the way to the helper process and back adds to a small image."""
    decoder, helper = ImageDecoder(SMALL, SMALL), DecodeHelper(TIMEOUT_S)
    try:
        helper.decode(decoder, file)  # starts the process
        here_s, there_s = lower_quartiles(
            [partial(decoder.decode, file), partial(helper.decode, decoder, file)], rounds
        )
    finally:
        helper.shutdown()
    return {"added_us": (there_s - here_s) * 1e6}


if __name__ == "__main__":
    main()
