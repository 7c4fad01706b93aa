from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

import profiling.recording
from models.backend import HeadOutput, State, gather_arrays
from models.data.dataset import Split
from models.preprocess import ImagePreprocessor, TextPreprocessor
from models.runtime.onnx_backend import OnnxBackend
from profiling.recording import first_rows, record_split, texts_of

NUM_WORDS = 50
DTYPES: tuple[Literal["float32", "uint8"], ...] = ("float32", "uint8")


class RowBackend:
    """Two exits whose output identifies the input of a row; records the input shapes.

    Of texts the sum of their tokens, padding left out; of images the sum of their pixels.
    """

    num_exits = 2
    device = "fake"
    gather = staticmethod(gather_arrays)
    synchronize = staticmethod(lambda: None)

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run_stage(self, stage: int, state: State) -> State:
        if stage == 0:
            self.shapes.append(state[0].shape)
        return state

    def run_head(self, exit: int, state: State) -> HeadOutput:
        told = state[0] * state[1] if len(state) == 2 else state[0]
        log_probs = -(told.reshape(len(told), -1).sum(1, keepdims=True) + exit + 1.0)
        both = np.concatenate([log_probs, 2 * log_probs], 1).astype(np.float32)
        return HeadOutput(both, both)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words 1 to 49 are their own ids."""
    words = Tokenizer(WordLevel({str(n): n for n in range(NUM_WORDS)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    words.save(str(path))
    return path


def reader(tokenizer: Path, length_step: int = 4) -> TextPreprocessor:
    return TextPreprocessor(
        tokenizer, max_tokens=10, pad_id=7, length_step=length_step, typical_tokens=4
    )


def told(found: np.ndarray) -> list[float]:
    """Decode the inputs of the rows from the output of one exit."""
    return (-found[:, 0].astype(float) - 1).tolist()


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=14), min_size=1, max_size=40),
    length_step=st.integers(1, 6),
)
def test_every_text_is_recorded_in_its_place(
    tokenizer: Path, texts: list[list[int]], length_step: int
) -> None:
    labels = np.arange(len(texts)) % 2
    split = Split([" ".join(map(str, words)) for words in texts], labels)
    backend = RowBackend()
    found = record_split(backend, reader(tokenizer, length_step), split)
    assert found.log_probs.shape == (2, len(texts), 2) and found.log_probs.dtype == np.float16
    assert told(found.log_probs[0]) == [sum(words[:10]) for words in texts]
    assert told(found.log_probs[1]) == [sum(words[:10]) + 1 for words in texts]
    assert np.array_equal(found.labels, labels)


def test_texts_are_recorded_at_the_lengths_at_which_they_are_served(tokenizer: Path) -> None:
    lengths = [1, 9, 4, 5, 10, 3, 8]
    split = Split([" ".join(["1"] * length) for length in lengths], np.zeros(7, np.int64))
    backend = RowBackend()
    record_split(backend, reader(tokenizer), split)
    assert sorted(backend.shapes) == [(2, 8), (2, 10), (3, 4)]


def test_many_texts_of_a_length_are_recorded_a_few_at_a_time(tokenizer: Path) -> None:
    split = Split([str(1 + n % 40) for n in range(250)], np.arange(250))
    backend = RowBackend()
    found = record_split(backend, reader(tokenizer), split)
    assert backend.shapes == [(100, 4), (100, 4), (50, 4)]
    assert told(found.log_probs[0]) == [1 + n % 40 for n in range(250)]
    assert found.labels.tolist() == list(range(250))


class Images:
    """Images generated on access: all pixels of row n are n / 10."""

    def __init__(self, rows: int) -> None:
        self.shape = (rows, 2, 3, 3)
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        numbers = np.arange(self.shape[0])[rows]
        self.asked.append(len(numbers))
        return np.broadcast_to(numbers[:, None, None, None], (len(numbers), 2, 3, 3)).astype("u1")


def plain() -> ImagePreprocessor:
    return ImagePreprocessor(2, 3, mean=(0, 0, 0), std=(1, 1, 1))


def test_images_are_read_and_recorded_a_chunk_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profiling.recording, "CHUNK_ROWS", 8)
    images, labels = Images(20), np.arange(20) * 3
    found = record_split(RowBackend(), plain(), Split(images, labels))
    assert images.asked == [8, 8, 4]
    assert found.log_probs.shape == (2, 20, 2)
    expected = [18 * row / 255 for row in range(20)]
    assert told(found.log_probs[0]) == pytest.approx(expected, abs=2e-3)
    assert np.array_equal(found.labels, labels)


def test_pixels_are_recorded_where_the_first_stage_normalises_itself(tmp_path: Path) -> None:
    preprocess = replace(plain(), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    images = np.random.default_rng(0).integers(0, 256, (12, 2, 3, 3), dtype=np.uint8)
    split = Split(images, np.zeros(12, np.int64))
    expected, found = (
        record_split(
            write_normalising_network(tmp_path / dtype, preprocess, dtype),
            replace(preprocess, dtype=dtype),
            split,
        )
        for dtype in DTYPES
    )
    assert found.log_probs.std() > 0.1
    assert found.log_probs == pytest.approx(expected.log_probs, abs=1e-3)
    (state,) = first_rows(replace(preprocess, dtype="uint8"), split, 4)
    assert np.array_equal(state, images[:4])


def write_normalising_network(
    folder: Path, preprocess: ImagePreprocessor, dtype: str
) -> OnnxBackend:
    """Write a network of one exit: log-probabilities of the channels' mean brightness."""
    given: tuple[Any, ...] = (onnx.TensorProto.FLOAT, ["rows", 3, 2, 3])
    first = [helper.make_node("Identity", ["image"], ["planes"])]
    constants = []
    if dtype == "uint8":
        given = (onnx.TensorProto.UINT8, ["rows", 2, 3, 3])
        mean, std = (255 * np.array(part, np.float32) for part in (preprocess.mean, preprocess.std))
        constants = [numpy_helper.from_array(mean, "mean"), numpy_helper.from_array(std, "std")]
        first = [
            helper.make_node("Cast", ["image"], ["levels"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Sub", ["levels", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "std"], ["scaled"]),
            helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        ]
    stage = [*first, helper.make_node("ReduceMean", ["planes"], ["means"], axes=[2, 3], keepdims=0)]
    head = [
        helper.make_node("Identity", ["means"], ["logits"]),
        helper.make_node("LogSoftmax", ["means"], ["log_probs"]),
    ]
    flat = (onnx.TensorProto.FLOAT, ["rows", 3])
    folder.mkdir()
    for name, nodes, inputs, outputs in (
        ("stage", stage, {"image": given}, ["means"]),
        ("head", head, {"means": flat}, ["logits", "log_probs"]),
    ):
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info(key, *kind) for key, kind in inputs.items()],
            [helper.make_tensor_value_info(key, *flat) for key in outputs],
            constants if name == "stage" else [],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
        onnx.save(model, folder / f"{name}.onnx")
    return OnnxBackend([folder / "stage.onnx"], [folder / "head.onnx"])


def test_masks_on_a_grid_are_recorded_with_their_images() -> None:
    class Grid(RowBackend):
        def run_head(self, exit: int, state: State) -> HeadOutput:
            logits = np.zeros((len(state[0]), 2, 3, 5), np.float32)
            return HeadOutput(logits, np.full((len(state[0]), 4, 5), -1.5, np.float32))

    labels = np.arange(28).reshape(7, 4) % 5
    found = record_split(Grid(), plain(), Split(Images(7), labels))
    assert found.log_probs.shape == (2, 7, 4, 5)
    assert np.array_equal(found.labels, labels)
    assert found.correct.shape == (7, 2)


def test_the_first_rows_are_one_input(tokenizer: Path) -> None:
    split = Split(["1 2 3", "4", "5 6", "7 8 9 10"], np.zeros(4, np.int64))
    ids, mask = first_rows(reader(tokenizer), split, 3)
    assert ids.tolist() == [[1, 2, 3, 7], [4, 7, 7, 7], [5, 6, 7, 7]]  # padded as served
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]
    images = Images(9)
    (state,) = first_rows(plain(), Split(images, np.zeros(9, np.int64)), 4)
    assert state.shape == (4, 3, 2, 3) and images.asked == [4]
    assert state[:, 0, 0, 0].tolist() == pytest.approx([0, 1 / 255, 2 / 255, 3 / 255])
    (few,) = first_rows(plain(), Split(Images(2), np.zeros(2, np.int64)), 64)
    assert few.shape == (2, 3, 2, 3)


def test_only_text_splits_have_texts() -> None:
    assert texts_of(Split(["a", "b"], np.zeros(2, np.int64))) == ["a", "b"]
    with pytest.raises(AssertionError, match="text readers"):
        texts_of(Split(Images(2), np.zeros(2, np.int64)))


def test_a_text_without_a_word_is_named_as_serving_would(tokenizer: Path) -> None:
    with pytest.raises(ValueError, match="the text is empty"):
        record_split(RowBackend(), reader(tokenizer), Split(["1", " "], np.zeros(2, np.int64)))
