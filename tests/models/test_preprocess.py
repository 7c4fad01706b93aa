import io
import json
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as kinds

from models.images import FORMATS
from models.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImagePreprocessor,
    InvalidInput,
    TextPreprocessor,
)
from models.training.batches import normalise
from tests.models.image_files import Pixels, encode, smooth

preprocess = ImagePreprocessor(32, 32, IMAGENET_MEAN, IMAGENET_STD)


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def furthest(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).max())


def on_white(colour: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    share = alpha[..., None] / 255
    return np.broadcast_to(colour * share + 255 * (1 - share), (*alpha.shape, 3))


def refusal(data: bytes, of: ImagePreprocessor = preprocess) -> str:
    with pytest.raises(InvalidInput) as caught:
        of(data)
    sentence = str(caught.value)
    assert sentence and "\n" not in sentence and len(sentence) < 300
    return sentence


def png_header(width: int, height: int) -> bytes:
    """Make a PNG with a size in its header and one empty chunk of data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"")
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_an_rgb_png_of_the_right_size_passes_bit_for_bit() -> None:
    pixels = noise(32, 32, 3)
    assert np.array_equal(preprocess.decode(encode(pixels)), pixels)


def test_bytes_become_one_row_of_network_input() -> None:
    pixels = noise(32, 32, 3)
    (row,) = preprocess(encode(pixels)).state
    assert (row.shape, row.dtype, row.flags.c_contiguous) == ((1, 3, 32, 32), np.float32, True)
    expected = (pixels[5, 7] / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(row[0, :, 5, 7], expected, atol=1e-6)


def test_serving_normalises_as_training_does() -> None:
    pixels = noise(3, 32, 32, 3)
    trained = normalise(
        torch.from_numpy(pixels), torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    ).numpy()
    np.testing.assert_allclose(preprocess.normalise(pixels), trained, rtol=0, atol=1e-6)


def test_pixels_go_to_a_first_stage_that_normalises_itself() -> None:
    pixels = noise(32, 32, 3)
    plain = replace(preprocess, dtype="uint8")
    given = plain(encode(pixels))
    (row,) = given.state
    assert (row.shape, row.dtype, row.flags.c_contiguous) == ((1, 32, 32, 3), np.uint8, True)
    assert np.array_equal(row[0], pixels) and given.size == (32, 32)
    (example,) = plain.example
    assert (example.shape, example.dtype) == (row.shape, row.dtype)
    small = plain.decode_if_small(encode(pixels))
    assert small is not None and np.array_equal(small.state[0], row)


def test_arrays_of_images_become_the_same_input_as_files() -> None:
    pixels = noise(3, 32, 32, 3)
    for reading in (preprocess, replace(preprocess, dtype="uint8")):
        (batch,) = reading.batch(pixels)
        for image, row in zip(pixels, batch, strict=True):
            assert np.array_equal(reading(encode(image)).state[0][0], row)
        assert batch.dtype == reading.example[0].dtype
        assert batch.shape[1:] == reading.example[0].shape[1:]


def test_height_and_width_are_told_apart() -> None:
    pixels = noise(12, 20, 3)
    flat = ImagePreprocessor(12, 20, IMAGENET_MEAN, IMAGENET_STD)
    assert np.array_equal(flat.decode(encode(pixels)), pixels)
    assert flat(encode(noise(40, 40, 3))).state[0].shape == (1, 3, 12, 20)


def test_grey_fills_three_channels() -> None:
    grey = noise(32, 32)
    assert np.array_equal(preprocess.decode(encode(grey)), np.stack([grey] * 3, -1))


def test_grey_with_alpha_is_laid_on_white() -> None:
    grey, alpha = noise(32, 32, 2).transpose(2, 0, 1)
    decoded = preprocess.decode(encode(Image.fromarray(np.stack([grey, alpha], -1), "LA")))
    assert furthest(decoded, on_white(grey[..., None], alpha)) <= 1


def test_colour_with_alpha_is_laid_on_white() -> None:
    pixels = noise(32, 32, 4)
    decoded = preprocess.decode(encode(pixels))
    assert furthest(decoded, on_white(pixels[..., :3], pixels[..., 3])) <= 1


@pytest.mark.parametrize("transparent", [None, 3])
def test_a_palette_is_looked_up_and_its_transparent_colour_is_white(
    transparent: int | None,
) -> None:
    indices, colours = noise(32, 32) % 8, noise(8, 3)
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.tobytes())
    options = {} if transparent is None else {"transparency": transparent}
    expected = colours[indices]
    if transparent is not None:
        expected[indices == transparent] = 255
    assert np.array_equal(preprocess.decode(encode(image, **options)), expected)


def test_one_bit_is_black_and_white() -> None:
    bits = noise(32, 32) > 127
    expected = np.repeat(bits[..., None] * np.uint8(255), 3, -1)
    assert np.array_equal(preprocess.decode(encode(Image.fromarray(bits))), expected)


def test_sixteen_bits_of_grey_are_scaled_to_eight() -> None:
    grey = noise(32, 32)
    data = encode(Image.fromarray(grey.astype(np.uint16) * 257))
    assert data[24] == 16  # the header's bit depth
    assert np.array_equal(preprocess.decode(data), np.stack([grey] * 3, -1))


def test_a_cmyk_jpeg_has_its_colours() -> None:
    ink = (200, 40, 0, 60)
    data = encode(Image.new("CMYK", (32, 32), ink), "JPEG", quality=95)
    expected = [(255 - c) * (255 - ink[3]) / 255 for c in ink[:3]]
    assert furthest(preprocess.decode(data), np.full((32, 32, 3), expected)) <= 4


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_an_image_stored_askew_comes_out_upright(
    format: str, orientation: int, stored: Image.Transpose | None
) -> None:
    upright = Image.fromarray(smooth(32, 64))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright if stored is None else upright.transpose(stored)
    data = encode(image, format, exif=exif, **({} if format == "PNG" else {"quality": 95}))
    assert furthest(preprocess.decode(data), np.asarray(upright)[:, 16:48]) <= 12


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_the_middle_of_a_large_image_is_kept(format: str) -> None:
    pixels = np.zeros((2000, 3000, 3), np.uint8)
    pixels[:1000] = (0, 0, 255)
    pixels[1000:] = (0, 255, 0)
    pixels[:, :350] = pixels[:, 2650:] = (255, 0, 0)  # beyond the middle and the filter's reach
    fast = {"compress_level": 1} if format == "PNG" else {"quality": 95}
    decoded = preprocess.decode(encode(pixels, format, **fast))
    assert decoded.shape == (32, 32, 3)
    assert furthest(decoded[:15], np.full((15, 32, 3), (0, 0, 255))) <= 12
    assert furthest(decoded[17:], np.full((15, 32, 3), (0, 255, 0))) <= 12


def test_one_pixel_fills_the_input() -> None:
    decoded = preprocess.decode(encode(np.array([[[9, 80, 200]]], np.uint8)))
    assert np.array_equal(decoded, np.full((32, 32, 3), (9, 80, 200)))


@pytest.mark.parametrize("upright", [False, True])
def test_the_middle_of_a_very_long_image_is_kept(upright: bool) -> None:
    pixels = np.full((3, 2000, 3), 255, np.uint8)
    pixels[:, 990:1010] = (10, 20, 30)
    data = encode(pixels.transpose(1, 0, 2).copy() if upright else pixels)
    assert np.array_equal(preprocess.decode(data), np.full((32, 32, 3), (10, 20, 30)))


def test_a_progressive_jpeg_is_the_baseline_one() -> None:
    pixels = smooth()
    plain, progressive = (encode(pixels, "JPEG", progressive=flag) for flag in (False, True))
    assert plain != progressive
    assert np.array_equal(preprocess.decode(progressive), preprocess.decode(plain))
    assert furthest(preprocess.decode(plain), pixels) <= 24


@pytest.mark.parametrize(("format", "options"), [("WEBP", {"lossless": True}), ("BMP", {})])
def test_lossless_formats_pass_bit_for_bit(format: str, options: dict[str, Any]) -> None:
    pixels = noise(32, 32, 3)
    assert np.array_equal(preprocess.decode(encode(pixels, format, **options)), pixels)


def test_of_a_moving_gif_the_first_frame_is_read() -> None:
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    data = encode(first, "GIF", save_all=True, append_images=[second])
    assert np.array_equal(preprocess.decode(data), np.full((32, 32, 3), (255, 0, 0)))


def test_unreadable_exif_does_not_spoil_a_good_image() -> None:
    pixels = noise(32, 32, 3)
    data = encode(pixels, exif=b"Exif\x00\x00nonsense")
    assert np.array_equal(preprocess.decode(data), pixels)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_cut_off_image_is_refused(format: str) -> None:
    data = encode(noise(32, 32, 3), format)
    for cut in range(1, len(data) - 40, 37):
        refusal(data[:cut])
    assert "damaged or cut off" in refusal(data[: len(data) // 2])


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_that_lacks_its_last_bytes_is_whole_or_refused(format: str) -> None:
    data = encode(noise(32, 32, 3), format)
    whole = preprocess.decode(data)
    for cut in range(len(data) - 20, len(data)):
        try:
            decoded = preprocess.decode(data[:cut])
        except InvalidInput:
            continue
        assert np.array_equal(decoded, whole)


def test_nothing_is_refused_as_empty() -> None:
    assert "empty" in refusal(b"")


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"<!doctype html><html><body>404</body></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        encode(noise(4, 4, 3), "TIFF"),
        encode(noise(4, 4, 3), "PPM"),
        encode(noise(4, 4, 3), "ICO"),
    ],
    ids=["text", "html", "svg", "pdf", "eps", "tiff", "ppm", "ico"],
)
def test_other_files_are_refused_with_the_formats_we_read(data: bytes) -> None:
    assert "PNG, JPEG, WEBP, GIF, BMP" in refusal(data)


@settings(max_examples=200, deadline=None, database=None)
@given(
    st.sampled_from(
        [
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff\xe0",
            b"GIF89a",
            b"BM",
            b"RIFF\x20\0\0\0WEBPVP8 ",
        ]
    ),
    st.binary(max_size=200),
)
def test_random_bytes_are_an_image_or_refused(magic: bytes, rest: bytes) -> None:
    try:
        assert preprocess(magic + rest).state[0].shape == (1, 3, 32, 32)
    except InvalidInput as error:
        assert "\n" not in str(error)


@settings(max_examples=300, deadline=None, database=None)
@given(st.sampled_from(FORMATS), st.data())
def test_a_damaged_image_is_an_image_or_refused(format: str, data: st.DataObject) -> None:
    damaged = bytearray(encode(smooth(16, 16), format))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert preprocess(bytes(damaged)).state[0].shape == (1, 3, 32, 32)
    except InvalidInput as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (8_000, 8_000), (1, 2**31 - 1)])
def test_too_many_pixels_are_refused_from_the_header(width: int, height: int) -> None:
    data, started = png_header(width, height), time.perf_counter()
    assert len(data) < 100
    assert "more than the allowed 50000000 pixels" in refusal(data)
    assert time.perf_counter() - started < 0.5


def test_the_pixel_limit_is_exact() -> None:
    small = ImagePreprocessor(32, 32, IMAGENET_MEAN, IMAGENET_STD, max_pixels=120)
    assert small.decode(encode(noise(10, 12, 3))).shape == (32, 32, 3)
    assert "11x11, more than the allowed 120 pixels" in refusal(encode(noise(11, 11, 3)), small)


def test_an_image_from_a_file_of_another_suffix_is_read_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "photo.txt").write_bytes(encode(noise(32, 32, 3), "WEBP"))
    assert preprocess((tmp_path / "photo.txt").read_bytes()).state[0].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16"])
@pytest.mark.parametrize("size", [(2000, 1000), (1000, 2000), (1001, 301), (640, 640)])
def test_large_images_keep_their_middle(mode: str, size: tuple[int, int]) -> None:
    # White inside the middle square's right half, black elsewhere: no shrinking may move it.
    width, height = size
    grey = np.zeros((height, width), np.uint8)
    grey[:, width // 2 :] = 255
    image = Image.fromarray(grey)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    small = ImagePreprocessor(32, 32, (0, 0, 0), (1, 1, 1)).decode(buffer.getvalue())
    assert small[:, :15].max() <= 30 and small[:, 17:].min() >= 225


TURNED = (5, 6, 7, 8)  # EXIF orientations whose sides change places


@pytest.mark.parametrize("fit", ["cover", "stretch"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("size", [(64, 40), (40, 64), (60, 62), (1000, 996), (320, 32)])
def test_the_size_told_is_that_of_the_upright_image(
    fit: Literal["cover", "stretch"], format: str, size: tuple[int, int]
) -> None:
    sized = replace(preprocess, fit=fit)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(Image.new("RGB", size, "red"), format, exif=exif)
        assert sized(data).size == (size[::-1] if orientation in TURNED else size), orientation


def test_the_size_told_is_that_before_a_large_image_is_shrunk() -> None:
    data = encode(Image.new("RGB", (2001, 1003), "red"), "JPEG")
    assert preprocess(data).size == (2001, 1003)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's
@pytest.mark.parametrize("exif", [b"Exif\x00\x00nonsense", b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_an_image_of_unreadable_exif_has_the_size_of_its_pixels(format: str, exif: bytes) -> None:
    assert preprocess(encode(noise(20, 30, 3), format, exif=exif)).size == (30, 20)


def test_stretching_gives_every_pixel_its_place() -> None:
    stretching = ImagePreprocessor(8, 16, (0, 0, 0), (1, 1, 1), fit="stretch")
    quarters = np.zeros((64, 40, 3), np.uint8)
    quarters[:32, 20:], quarters[32:, :20], quarters[32:, 20:] = (250, 0, 0), (0, 250, 0), 250
    decoded = stretching.decode(encode(quarters))
    assert decoded.shape == (8, 16, 3)
    corners = {(0, 0): (0, 0, 0), (0, 15): (250, 0, 0), (7, 0): (0, 250, 0), (7, 15): (250,) * 3}
    for place, colour in corners.items():
        assert furthest(decoded[place], np.array(colour)) <= 1
    assert ImagePreprocessor(8, 16, (0, 0, 0), (1, 1, 1)).fit == "cover"


def test_what_covering_cuts_off_is_kept_by_stretching() -> None:
    pixels = np.zeros((64, 40, 3), np.uint8)
    pixels[:8] = 250
    stretching = ImagePreprocessor(16, 16, (0, 0, 0), (1, 1, 1), fit="stretch")
    assert stretching.decode(encode(pixels))[0].min() >= 240
    assert not replace(stretching, fit="cover").decode(encode(pixels)).any()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16"])
@pytest.mark.parametrize("size", [(2000, 1000), (999, 2003), (40, 3000), (32, 32), (3, 2)])
def test_stretched_images_keep_their_borders(mode: str, size: tuple[int, int]) -> None:
    width, height = size
    grey = np.zeros((height, width), np.uint8)
    grey[:, width // 2 :] = 255
    image = Image.fromarray(grey)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    stretching = ImagePreprocessor(32, 32, (0, 0, 0), (1, 1, 1), fit="stretch")
    prepared = stretching(encode(image))
    assert prepared.size == size and prepared.state[0].shape == (1, 3, 32, 32)
    decoded = stretching.decode(encode(image))
    half = 32 * (width // 2) // width
    assert decoded[:, : half - 3].max(initial=0) <= 30 and decoded[:, half + 4 :].min() >= 225


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stretched_images_come_out_upright(orientation: int) -> None:
    upright = np.zeros((60, 40, 3), np.uint8)
    upright[:30, :20] = 255  # white in the upper left quarter
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # as Image.Transpose numbers them
    image, exif = Image.fromarray(upright), Image.Exif()
    if orientation > 1:
        image = image.transpose(Image.Transpose(undo[orientation]))
    exif[0x0112] = orientation
    stretching = ImagePreprocessor(8, 8, (0, 0, 0), (1, 1, 1), fit="stretch")
    decoded = stretching.decode(encode(image, exif=exif))
    assert decoded[:3, :3].min() >= 225
    assert decoded[:, 5:].max() <= 30 and decoded[5:].max() <= 30


def reader(tokenizer: Path, **changes: int) -> TextPreprocessor:
    sizes = {"max_tokens": 20, "pad_id": 0, "length_step": 8, "typical_tokens": 16}
    return TextPreprocessor(tokenizer, **sizes | changes)


def test_a_text_becomes_one_row_of_ids_and_mask(tokenizer: Path) -> None:
    ids, mask = reader(tokenizer)("Good FILM").state
    assert ids.shape == mask.shape == (1, 8)
    assert ids.dtype == mask.dtype == np.int64
    named = json.loads(tokenizer.read_text())["model"]["vocab"]
    assert ids[0, :4].tolist() == [named[t] for t in ("[CLS]", "good", "film", "[SEP]")]
    assert not ids[0, 4:].any() and mask[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("pad_id", [0, 7])
@pytest.mark.parametrize(
    ("words", "width"), [(1, 8), (6, 8), (7, 16), (14, 16), (15, 20), (18, 20), (19, 20), (99, 20)]
)
def test_texts_are_filled_up_to_a_step_or_the_most(
    tokenizer: Path, words: int, width: int, pad_id: int
) -> None:
    prepared = reader(tokenizer, pad_id=pad_id)(" ".join(["good"] * words))
    ids, mask = prepared.state
    tokens = min(words + 2, 20)
    assert ids.shape == (1, width) and mask.sum() == tokens and mask[0, :tokens].all()
    assert (ids[0, tokens:] == pad_id).all()
    assert prepared.truncated == (words > 18) and prepared.size is None
    assert ids[0, tokens - 1] == 3  # the end's special token stays


def test_a_step_above_the_most_fills_every_text_to_the_most(tokenizer: Path) -> None:
    for words in (1, 3, 30):
        prepared = reader(tokenizer, max_tokens=5, length_step=8)("good " * words)
        assert prepared.state[0].shape == (1, 5)
        assert prepared.truncated == (words > 3)


def test_the_tokenizers_own_cut_and_padding_do_not_count(tokenizer: Path) -> None:
    prepared = reader(tokenizer, length_step=1)("good " * 9)  # its file says 4 tokens
    assert prepared.state[0].shape == (1, 11) and not prepared.truncated


@pytest.mark.parametrize("text", ["", " ", "\n\t \r\n", "\u3000\u2003", "\u200b", "\0"])
def test_an_empty_text_is_refused(tokenizer: Path, text: str) -> None:
    with pytest.raises(InvalidInput, match="the text is empty; send at least one word"):
        reader(tokenizer)(text)


@pytest.mark.parametrize("text", ["\ud83d", "good \udcff", "\ud800" * 1000])
def test_half_a_character_is_refused(tokenizer: Path, text: str) -> None:
    with pytest.raises(
        InvalidInput, match="the text holds half of a surrogate pair; send valid Unicode"
    ):
        reader(tokenizer)(text)


def test_a_text_of_which_no_token_is_left_is_refused(
    word_pieces: dict[str, Any], tmp_path: Path
) -> None:
    # No special tokens stand around this tokenizer's texts.
    (tmp_path / "t.json").write_text(json.dumps({**word_pieces, "post_processor": None}))
    assert reader(tmp_path / "t.json")("good").state[1].sum() == 1
    with pytest.raises(InvalidInput, match="the text holds no tokens of the model"):
        reader(tmp_path / "t.json")("\ue000\ufffd")


@pytest.mark.parametrize("text", ["\ue000", "\ufffd good\ue000"])
def test_special_tokens_alone_are_nothing_to_read(tokenizer: Path, text: str) -> None:
    if "good" in text:
        assert reader(tokenizer)(text).state[1].sum() == 3
        return
    with pytest.raises(InvalidInput, match="the text holds no tokens of the model"):
        reader(tokenizer)(text)


@pytest.mark.parametrize(
    ("text", "share"),
    [("good film", 0.0), ("good \U0001f600 film", 1 / 3), ("\u96fb\u5f71", 1.0), ("[MASK]", 0.0)],
)
def test_the_share_of_unknown_tokens_is_told(tokenizer: Path, text: str, share: float) -> None:
    assert reader(tokenizer)(text).unknown_share == share


@pytest.mark.parametrize("kind", ["WordLevel", "BPE", "Unigram", "bytes"])
def test_every_kind_of_tokenizer_has_its_unknown_token(tmp_path: Path, kind: str) -> None:
    tokenizer = Tokenizer(
        {
            "WordLevel": lambda: kinds.WordLevel({"<u>": 0, "good": 1}, unk_token="<u>"),
            "BPE": lambda: kinds.BPE({"<u>": 0, "g": 1}, [], unk_token="<u>"),
            "Unigram": lambda: kinds.Unigram([("<unk>", 0.0), ("good", -1.0)], unk_id=0),
            "bytes": lambda: kinds.BPE({"g": 0, "o": 1, "d": 2, "\u00c3": 3, "\u00a4": 4}, []),
        }[kind]()
    )
    tokenizer.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if kind == "bytes"
        else pre_tokenizers.Whitespace()
    )
    tokenizer.save(str(tmp_path / "t.json"))
    shares = {"WordLevel": 1.0, "BPE": 1.0, "Unigram": 1.0, "bytes": 0.0}
    assert reader(tmp_path / "t.json")("\u00e4").unknown_share == shares[kind]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("😀", ["[UNK]"]),
        ("good 👩‍👩‍👧 film", ["good", "[UNK]", "film"]),
        ("g\u00f3\u00f6d", ["good"]),  # accents are stripped
        ("go\0od", ["good"]),
        ("\0good\ufffd film\x07", ["good", "film"]),
        ("電影good", ["[UNK]", "[UNK]", "good"]),
        ("\u202egood", ["good"]),
        ("[MASK]", ["[MASK]"]),
    ],
)
def test_any_character_is_read(tokenizer: Path, text: str, pieces: list[str]) -> None:
    vocabulary = json.loads(tokenizer.read_text())["model"]["vocab"]
    names = {id: token for token, id in vocabulary.items()}
    prepared = reader(tokenizer)(text)
    ids, mask = prepared.state
    tokens = [names[id] for id in ids[0, : mask.sum()].tolist()]
    assert tokens == ["[CLS]", *pieces, "[SEP]"] and not prepared.truncated


@settings(max_examples=200, deadline=None, database=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_is_read_or_empty(tokenizer: Path, text: str) -> None:
    try:
        ids, mask = reader(tokenizer)(text).state
    except InvalidInput:
        assert not any(ch.isalnum() and ch.isascii() for ch in text)
        return
    assert ids.shape == mask.shape and ids.shape[1] in (8, 16, 20)
    assert ids[0, 0] == 2 and ids[0, mask.sum() - 1] == 3 and 0 <= ids.min() <= ids.max() < 80
    together = reader(tokenizer).batch([text, "good"])
    assert together[0][0, : mask.sum()].tolist() == ids[0, : mask.sum()].tolist()


@pytest.mark.parametrize("text", ["good ", "a", "😀", "ab. ", "a\0", "[SEP]"])
def test_a_huge_text_is_cut_in_no_time_and_flagged(tokenizer: Path, text: str) -> None:
    huge, started = text * (5_000_000 // len(text)), time.perf_counter()
    prepared = reader(tokenizer, max_tokens=128)(huge)
    assert time.perf_counter() - started < 0.5
    assert prepared.truncated and prepared.state[0].shape[1] <= 128


@pytest.mark.parametrize("blank", ["\0", "\u200b", "\u0301", " "])
def test_a_huge_text_of_nothing_is_refused_in_no_time(tokenizer: Path, blank: str) -> None:
    huge, started = blank * 5_000_000, time.perf_counter()
    with pytest.raises(InvalidInput, match="the text is empty"):
        reader(tokenizer, max_tokens=128)(huge)
    assert time.perf_counter() - started < 0.5


def test_blanks_longer_than_any_text_are_an_empty_one(tokenizer: Path) -> None:
    with pytest.raises(InvalidInput, match="the text is empty"):
        reader(tokenizer)(" " * 1_000_000 + "good")


def test_a_row_to_measure_with_is_as_long_as_is_typical(tokenizer: Path) -> None:
    ids, mask = reader(tokenizer, pad_id=7).example
    assert ids.shape == mask.shape == (1, 16) and (ids == 7).all() and mask.all()


@pytest.mark.parametrize("content", [None, "", "{}", "words"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "t.json").write_text(content)
    with pytest.raises(ValueError, match=r"t\.json is not a tokenizer: "):
        reader(tmp_path / "t.json")


def test_preprocessors_of_one_tokenizer_are_apart(tokenizer: Path) -> None:
    short, long = reader(tokenizer, max_tokens=4), reader(tokenizer)
    assert short("good " * 9).state[0].shape == (1, 4)
    assert long("good " * 9).state[0].shape == (1, 16)
    assert replace(long, typical_tokens=8)("good " * 9).state[0].shape == (1, 16)


def test_half_a_character_is_unreadable(tokenizer: Path) -> None:
    with pytest.raises(InvalidInput, match="half of a surrogate pair"):
        reader(tokenizer)("good \ud800")
