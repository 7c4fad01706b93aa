from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from models.backend import State
from models.images import InvalidInput
from models.preprocess import ImagePreprocessor, TextPreprocessor
from models.several_inputs import SeveralImages, SeveralTexts
from tests.conftest import Images

HALF = (0.5, 0.5, 0.5)
FIRST = ImagePreprocessor(16, 16, HALF, HALF)
OTHERS = (ImagePreprocessor(24, 20, HALF, (0.2, 0.3, 0.4)), ImagePreprocessor(16, 16, HALF, HALF))


def several_images() -> SeveralImages:
    return SeveralImages(height=16, width=16, mean=HALF, std=HALF, others=OTHERS)


def same(found: State, expected: State) -> bool:
    return len(found) == len(expected) and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(found, expected, strict=True)
    )


def test_every_network_gets_what_its_own_preprocessing_makes(images: Images) -> None:
    data = images.files[0]
    alone = [each(data) for each in (FIRST, *OTHERS)]
    expected = tuple(each.state[0] for each in alone)
    several = several_images()
    made = several(data)
    assert same(made.state, expected)
    assert (made.size, made.truncated) == (alone[0].size, False)
    small, fast = several.decode_if_small(data), several.decode_if_fast(data)
    assert small is not None and same(small.state, expected)
    assert same(fast.state, expected)  # type: ignore[union-attr]
    assert [array.shape for array in several.example] == [array.shape for array in expected]


def test_pixels_are_normalised_where_they_arrive(images: Images) -> None:
    several = several_images()
    pixels = several.of_pixels(images.files[0]).state
    assert [array.dtype for array in pixels] == [np.uint8] * 3
    assert same(several.from_pixels(pixels), several(images.files[0]).state)


def test_images_of_one_size_are_decoded_once(images: Images) -> None:
    twin = ImagePreprocessor(16, 16, (0.1, 0.1, 0.1), HALF)
    several = SeveralImages(height=16, width=16, mean=HALF, std=HALF, others=(twin,))
    decoded: list[bytes] = []

    def decode(decoder, data):  # type: ignore[no-untyped-def]
        decoded.append(data)
        return decoder.decode(data)

    state = several.decode_by(decode, images.files[0]).state
    assert len(decoded) == 1
    assert same(state, (FIRST(images.files[0]).state[0], twin(images.files[0]).state[0]))
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    assert same(several.batch(pixels), (FIRST.batch(pixels)[0], twin.batch(pixels)[0]))


def test_images_of_one_size_are_no_input_of_several_sizes() -> None:
    with pytest.raises(ValueError, match="read images of 16x16, 20x24, 16x16"):
        several_images().batch(np.zeros((1, 16, 16, 3), np.uint8))


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(InvalidInput):
        several_images()(b"no image")


def save_tokenizer(path: Path, words: str) -> Path:
    vocabulary = {word: id for id, word in enumerate(["[PAD]", "[UNK]", *words.split()])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(path))
    return path


def test_a_text_is_tokenised_for_every_network(tmp_path: Path) -> None:
    first = TextPreprocessor(save_tokenizer(tmp_path / "a.json", "good bad"), 8, 0, 4, 4)
    other = TextPreprocessor(save_tokenizer(tmp_path / "b.json", "bad film good"), 3, 0, 1, 2)
    several = SeveralTexts(
        tokenizer=first.tokenizer,
        max_tokens=8,
        pad_id=0,
        length_step=4,
        typical_tokens=4,
        others=(other,),
    )
    for text, cut in (("good film", False), ("a good film was bad", True)):
        made = several(text)
        assert same(made.state, (*first(text).state, *other(text).state))
        assert made.truncated is cut
        small = several.decode_if_small(text)
        assert small is not None and same(small.state, made.state)
    both = ["good", "bad film"]
    assert same(several.batch(both), (*first.batch(both), *other.batch(both)))
    assert same(several.example, (*first.example, *other.example))
    with pytest.raises(InvalidInput, match="empty"):
        several("  ")
