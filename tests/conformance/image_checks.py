"""Image files that cost more than they should, and damaged ones."""

import base64
import io
import itertools
import json
import random
import struct
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conformance.checks import REFUSED, Check, Figures, outcomes
from tests.conformance.target import JPEG, JSON, MIB, PNG, Target, again_and_again, ask, post

DATA = Path(__file__).resolve().parent.parent / "data" / "cifar10_test_300.npz"
MUTATED, SENDERS = 10_000, 16
RIGHT = REFUSED | {"200"}


@cache
def real_images() -> list[bytes]:
    with np.load(DATA, allow_pickle=False) as arrays:
        blob, offsets = arrays["blob"].tobytes(), arrays["off"].tolist()
    return [blob[start:end] for start, end in itertools.pairwise(offsets)]


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(chunks: list[tuple[bytes, bytes]], side: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((3 * side + 1) * side)))
    extra = b"".join(chunk(kind, body) for kind, body in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + chunk(b"IEND", b"")


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def entropy_coded(bits: str) -> bytes:
    whole = bits + "1" * (-len(bits) % 8)
    return int(whole, 2).to_bytes(len(whole) // 8, "big").replace(b"\xff", b"\xff\0")


def with_scans(side: int, scans: int) -> bytes:
    """A grey progressive JPEG whose scans hold next to nothing, though each visits every block."""
    blocks = (-(-side // 8)) ** 2
    runs, left = "", blocks
    while left:  # runs of blocks that end at once, each as long as can be told
        power = min(left.bit_length() - 1, 14)
        run = min(left, (1 << (power + 1)) - 1)
        runs += format(power, "05b") + (format(run - (1 << power), f"0{power}b") if power else "")
        left -= run
    lengths = bytearray(16)
    lengths[4] = 15
    tables = segment(0xDB, b"\0" + b"\1" * 64)
    tables += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    tables += segment(0xC4, b"\0\1" + bytes(15) + b"\0")
    tables += segment(0xC4, b"\x10" + lengths + bytes(n << 4 for n in range(15)))
    means = segment(0xDA, b"\1\1\0\0\0\1") + entropy_coded("0" * blocks)
    first = segment(0xDA, b"\1\1\0\1\77\1") + entropy_coded(runs)
    further = segment(0xDA, b"\1\1\0\1\77\20") + entropy_coded(runs)
    return b"\xff\xd8" + tables + means + first + further * scans + b"\xff\xd9"


@cache
def blank_images() -> dict[str, bytes]:
    """Of 49 megapixels, by type."""
    blank = Image.new("RGB", (7000, 7000))
    return {
        "image/webp": encode(blank, "WEBP", lossless=True, method=0),
        "image/avif": encode(blank, "AVIF", speed=10),
        PNG: encode(blank, "PNG"),
    }


def many_pixels_in_few_bytes(target: Target) -> Figures:
    """Blank images of 49 megapixels in a few bytes hold up nobody and cost little memory."""
    seen: Counter[str] = Counter()
    for kind, file in blank_images().items():
        seen += again_and_again(40, 2, lambda file=file, kind=kind: post(target, file, kind))
    return outcomes(seen, RIGHT)


def many_scans(target: Target) -> Figures:
    """JPEGs of 100 scans of 25 megapixels each hold up nobody."""
    file = with_scans(5000, 100)
    return outcomes(again_and_again(4, 2, lambda: post(target, file, JPEG)), RIGHT)


def packed_comments(target: Target) -> Figures:
    """Small PNGs with megabytes of packed comments and profiles do not stop the event loop."""
    packed = zlib.compress(bytes(MIB), 9)
    comments = png_with([(b"zTXt", b"a%d\0\0" % n + packed) for n in range(7)])
    profile = png_with([(b"iCCP", b"p\0\0" + packed)])
    seen = again_and_again(24, 2, lambda: post(target, comments, PNG))
    return outcomes(seen + again_and_again(24, 2, lambda: post(target, profile, PNG)), RIGHT)


def large_images(target: Target) -> Figures:
    """Forty clients with images that take 50 ms each hold up no client with small ones."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    file = encode(Image.fromarray(noise), "JPEG", progressive=True, quality=80)
    return outcomes(again_and_again(40, 3, lambda: post(target, file, JPEG)), RIGHT)


def runs_in_python(target: Target) -> Figures:
    """Compressed BMPs, which are read in Python, hold up nobody."""
    runs = b"\1\2" * 500_000 + b"\0\1"
    start = 54 + 1024
    size = struct.pack("<IiiHHIIiiII", 40, 1000, 1000, 1, 8, 1, len(runs), 0, 0, 256, 0)
    file = b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + size + bytes(1024) + runs
    return outcomes(again_and_again(8, 2, lambda: post(target, file, "image/bmp")), RIGHT)


def mutated_bodies(target: Target) -> Figures:
    """10,000 damaged images are each answered 200 or 4xx, and none with 500."""
    rng, files = random.Random(0), real_images()
    formats = ("PNG", "WEBP", "GIF", "BMP", "AVIF")
    decoded = [Image.open(io.BytesIO(file)).convert("RGB") for file in files[:8]]
    files = files + [encode(image, format) for image in decoded for format in formats]

    def mutated() -> bytes:
        data = bytearray(rng.choice(files))
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randrange(1, 64)]
                case 2:
                    data[at:at] = rng.randbytes(rng.randrange(1, 64))
                case 3:
                    data[at:at] = data[: rng.randrange(1, 200)]
            data = data or bytearray(b"x")
        return bytes(data)

    with ThreadPoolExecutor(SENDERS) as pool:
        bodies = [mutated() for _ in range(MUTATED)]
        seen = Counter(pool.map(lambda body: post(target, body, JPEG), bodies, chunksize=50))
    # 429: many of them are AVIFs, which one process decodes one by one.
    return outcomes(seen, {"200", "422", "429", "413"}, seen["closed"] + seen["timeout"])


def poison_in_a_batch(target: Target) -> Figures:
    """Bad items of a list become errors of their own; the others are answered as if alone."""
    files, wrong = real_images()[:16], 0
    items = [base64.b64encode(file).decode() for file in files]
    bad = {3: "!!!", 7: base64.b64encode(b"no image").decode(), 11: items[11][:200]}
    body = {"images": [bad.get(n, item) for n, item in enumerate(items)], "budget_ms": 1e6}
    told = json.loads(ask(target, "POST", target.path, json.dumps(body).encode(), JSON).body)
    for n, (entry, item) in enumerate(zip(told["predictions"], items, strict=True)):
        if n in bad:
            wrong += entry.get("error", {}).get("status") != 422
            continue
        alone = json.dumps({"image": item, "budget_ms": 1e6}).encode()
        expected = json.loads(ask(target, "POST", target.path, alone, JSON).body)
        wrong += entry.get("class_id") != expected["class_id"]
    assert not wrong, f"{wrong} of {len(items)} answers are wrong"
    return Figures(len(items), note="3 errors, 13 answers")


CHECKS = (
    Check(many_pixels_in_few_bytes, growth_mib=600),  # each of two front-ends decodes one
    Check(many_scans),
    Check(packed_comments),
    Check(large_images),
    Check(runs_in_python),
    Check(mutated_bodies, probed=False),
    Check(poison_in_a_batch, probed=False),
)
