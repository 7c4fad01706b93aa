import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.preprocess import IMAGENET_MEAN, IMAGENET_STD, ImagePreprocessor, TextPreprocessor
from models.training.batches import (
    POOL_BATCHES,
    ImageBatches,
    MaskBatches,
    TextBatches,
    batches_for,
    crop_and_flip,
)

WORDS = ("good", "bad", "film", "very", "ungoodly")


@pytest.fixture(scope="module")
def texts(tokenizer: Path) -> TextBatches:
    return TextBatches(TextPreprocessor(tokenizer, 12, 0, 1, 1))


def make_texts(rows: int) -> list[str]:
    rng = np.random.default_rng(rows)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(rows)]


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_augmented_images_are_crops_of_the_padded_ones_half_of_them_flipped() -> None:
    images = torch.randint(1, 256, (64, 17, 13, 3), dtype=torch.uint8)
    padded = torch.zeros(64, 21, 17, 3, dtype=torch.uint8)
    padded[:, 2:19, 2:15] = images
    drawn = set()
    for row, result in enumerate(crop_and_flip(images, torch.Generator().manual_seed(0))):
        matches = [
            (top, left, flip)
            for top, left, flip in itertools.product(range(5), range(5), (False, True))
            if torch.equal(
                padded[row, top : top + 17, left : left + 13].flip(1 if flip else ()), result
            )
        ]
        assert matches
        drawn.add(matches[0])
    assert {flip for _, _, flip in drawn} == {False, True}
    assert {top for top, _, _ in drawn} == {left for _, left, _ in drawn} == set(range(5))


def test_augmentation_follows_its_generator() -> None:
    images = torch.randint(0, 256, (16, 8, 8, 3), dtype=torch.uint8)
    one, same, other = (crop_and_flip(images, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert one.shape == images.shape and one.dtype == torch.uint8
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_tiny_image_is_padded_by_a_pixel() -> None:
    images = torch.full((64, 3, 2, 3), 9, dtype=torch.uint8)
    cropped = crop_and_flip(images, torch.Generator().manual_seed(0))
    assert cropped.shape == images.shape
    assert {int(image[1].sum()) for image in cropped} == {27, 54}  # a column of it lost, or none


def test_images_are_augmented_as_their_seed_says_and_keep_their_labels() -> None:
    batches = ImageBatches(IMAGENET_MEAN, IMAGENET_STD)
    inputs, labels, rows = images(9, 8, 8), np.arange(9), np.array([7, 0, 3, 4, 1])
    one, of_one = batches.augmented(inputs, labels, rows, 3)
    same, _ = batches.augmented(inputs, labels, rows, 3)
    other, _ = batches.augmented(inputs, labels, rows, 4)
    assert isinstance(one, torch.Tensor) and one.shape == (5, 3, 8, 8)
    assert one.dtype == torch.float32 and of_one.tolist() == rows.tolist()
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("kind", [ImageBatches, MaskBatches])
def test_clean_images_are_those_of_serving(kind: type[ImageBatches]) -> None:
    inputs, rows = images(4, 6, 5), np.array([2, 0])
    serving = ImagePreprocessor(6, 5, IMAGENET_MEAN, IMAGENET_STD)
    clean = kind(IMAGENET_MEAN, IMAGENET_STD).clean(inputs, rows)
    for row, tensor in zip(rows, clean, strict=True):
        stream = io.BytesIO()
        Image.fromarray(inputs[row]).save(stream, "PNG")
        (served,) = serving(stream.getvalue()).state
        np.testing.assert_allclose(tensor.numpy(), served[0], rtol=0, atol=1e-6)


def test_masks_are_flipped_with_their_images() -> None:
    batches = MaskBatches(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    inputs, rows = images(40, 4, 6), np.arange(1, 40)
    masks = inputs[..., 0].astype(np.int64)
    drawn, of_drawn = batches.augmented(inputs, masks, rows, 5)
    assert drawn.shape == (39, 3, 4, 6) and of_drawn.shape == (39, 4, 6)
    np.testing.assert_array_equal((drawn[:, 0] * 255).round().long(), of_drawn)
    flipped = []
    for row, mask in zip(rows, of_drawn.numpy(), strict=True):
        flipped.append(np.array_equal(mask, masks[row, :, ::-1]))
        assert flipped[-1] or np.array_equal(mask, masks[row])
    assert 10 < sum(flipped) < 30
    again, _ = batches.augmented(inputs, masks, rows, 5)
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, batches.augmented(inputs, masks, rows, 6)[0])


def test_images_come_in_the_order_that_was_drawn() -> None:
    rows = np.array([5, 1, 3])
    order = ImageBatches(IMAGENET_MEAN, IMAGENET_STD).order(images(6, 2, 2), rows, 2)
    assert order.tolist() == [5, 1, 3]


@settings(max_examples=60, deadline=None, database=None)
@given(num_rows=st.integers(1, 300), size=st.integers(1, 9), seed=st.integers(0, 3))
def test_texts_are_taken_each_once_in_batches_of_like_length(
    texts: TextBatches, num_rows: int, size: int, seed: int
) -> None:
    inputs = make_texts(400)
    rows = np.random.default_rng(seed).permutation(400)[:num_rows]
    order = texts.order(inputs, rows, size)
    assert sorted(order.tolist()) == sorted(rows.tolist())
    assert np.array_equal(order, texts.order(inputs, rows.copy(), size))
    for start in range(0, num_rows, POOL_BATCHES * size):
        pool = slice(start, start + POOL_BATCHES * size)
        assert set(order[pool].tolist()) == set(rows[pool].tolist())
        lengths = np.array([len(inputs[row]) for row in order[pool]])
        batches = [lengths[i : i + size] for i in range(0, len(lengths), size)]
        ranges = sorted((int(batch.min()), int(batch.max())) for batch in batches)
        # Of one length there may be several batches, but else no text has a place in another one.
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))


def test_short_and_long_batches_of_texts_are_mixed(texts: TextBatches) -> None:
    inputs, firsts = make_texts(200), set()
    for seed in range(8):
        rows = np.random.default_rng(seed).permutation(200)
        lengths = [len(inputs[row]) for row in texts.order(inputs, rows, 10)]
        means = np.reshape(lengths, (20, 10)).mean(1)
        firsts.add(int(np.argsort(np.argsort(means))[0]))
        assert not np.array_equal(means, np.sort(means))
    assert len(firsts) > 4


def test_a_short_batch_of_texts_comes_last(texts: TextBatches) -> None:
    inputs = make_texts(23)
    for seed in range(5):
        rows = np.random.default_rng(seed).permutation(23)
        lengths = [len(inputs[row]) for row in texts.order(inputs, rows, 10)]
        assert min(lengths[20:]) >= max(lengths[:20])


def test_clean_texts_are_those_of_serving(texts: TextBatches, tokenizer: Path) -> None:
    inputs = [*make_texts(6), "gut 😀 film\0", "good " * 40, " " * 700 + "good bad", "a" * 5000]
    serving = TextPreprocessor(tokenizer, 12, 0, 8, 8)
    ids, mask = texts.clean(inputs, np.arange(10)[::-1])
    assert ids.dtype == mask.dtype == torch.int64 and ids.shape == mask.shape == (10, 12)
    for text, row, seen in zip(inputs[::-1], ids, mask, strict=True):
        served_ids, served_mask = serving(text).state
        width = served_ids.shape[1]
        assert row[:width].tolist() == served_ids[0].tolist(), text
        assert seen[:width].tolist() == served_mask[0].tolist()
        assert not seen[width:].any() and not row[width:].any()


def test_texts_are_as_long_as_the_longest_of_their_batch(texts: TextBatches) -> None:
    inputs = ["good", "good good good", "good bad"]
    for rows, tokens in (([0], 3), ([0, 2], 4), ([2, 1, 0], 5)):
        ids, mask = texts.clean(inputs, np.array(rows))
        assert ids.shape == (len(rows), tokens)
        assert mask.sum(1).tolist() == [2 + len(inputs[row].split()) for row in rows]


def test_texts_are_trained_on_as_they_are(texts: TextBatches) -> None:
    inputs, labels, rows = make_texts(5), np.array([4, 3, 2, 1, 0]), np.array([3, 1])
    (ids, mask), of_rows = texts.augmented(inputs, labels, rows, 3)
    clean_ids, clean_mask = texts.clean(inputs, rows)
    assert torch.equal(ids, clean_ids) and torch.equal(mask, clean_mask)
    assert of_rows.tolist() == [1, 3]


def test_each_task_has_its_batches(tokenizer: Path, tmp_path: Path) -> None:
    pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.1, 0.2, 0.3]}
    assert type(batches_for("image", pixels, tmp_path / "absent")) is ImageBatches
    masks = batches_for("segmentation", pixels, tmp_path / "absent")
    assert isinstance(masks, MaskBatches) and masks.std.tolist() == pytest.approx([0.1, 0.2, 0.3])
    read = batches_for("text", {"max_tokens": 5, "pad_id": 9}, tokenizer)
    assert isinstance(read, TextBatches)
    ids, _ = read.clean(["good " * 8, "good"], np.arange(2))
    assert ids.shape == (2, 5) and ids[1, 3:].tolist() == [9, 9]
