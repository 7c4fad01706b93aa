import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from benchmarks.control.drift_sets import (
    DriftSet,
    load_drift_set,
    measure_lengths,
    record_images,
    record_texts,
    save_drift_set,
)
from models.backend import HeadOutput, State, gather_arrays
from models.preprocess import ImagePreprocessor, TextPreprocessor
from profiling.loadtest.variants import InputVariant

CLEAN = InputVariant("clean", 0)


class SumBackend:
    """Two exits; class 0 where what came in sums to 0 or less, the second exit the other way."""

    num_exits = 2
    device = "fake"
    gather = staticmethod(gather_arrays)
    synchronize = staticmethod(lambda: None)

    def __init__(self) -> None:
        self.widths: list[int] = []

    def run_stage(self, stage: int, state: State) -> State:
        self.widths.append(state[0].shape[1])
        return state

    def run_head(self, exit: int, state: State) -> HeadOutput:
        sums = state[0].reshape(len(state[0]), -1).sum(1)
        likely = np.clip(np.abs(sums) / 120, 0.55, 0.9)
        one = np.where((sums > 0) ^ (exit == 1), likely, 1 - likely)
        log_probs = np.log(np.stack([1 - one, one], 1)).astype(np.float32)
        return HeadOutput(log_probs, log_probs)


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def reader(tmp_path: Path) -> TextPreprocessor:
    words = Tokenizer(WordLevel({str(n): n for n in range(9)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    return TextPreprocessor(
        tmp_path / "tokenizer.json", max_tokens=10, pad_id=0, length_step=4, typical_tokens=4
    )


def test_images_keep_their_rows_in_every_form() -> None:
    files, labels = [png(250), png(10), png(240)], np.array([1, 0, 1])
    preprocess = ImagePreprocessor(8, 8, mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    forms = [CLEAN, InputVariant("noise", 5)]
    drift = record_images(SumBackend(), preprocess, files, labels, forms, seed=0)
    assert drift.variants == ("clean", "noise-5") and drift.tokens is None
    assert drift.log_probs.shape == (2, 2, 3, 2) and drift.log_probs.dtype == np.float16
    assert drift.accuracy.tolist() == [[1, 0], [1, 0]]
    assert (drift.log_probs[0] != drift.log_probs[1]).any()
    again = record_images(SumBackend(), preprocess, files, labels, forms, seed=0)
    assert (drift.log_probs == again.log_probs).all()
    assert drift.predictions("noise-5").log_probs is not None
    with pytest.raises(ValueError, match="'blur-1' was not recorded"):
        drift.predictions("blur-1")


def test_texts_tell_how_long_they_are_in_every_form(reader: TextPreprocessor) -> None:
    texts, labels = ["1 2 3", "0 0 0 0 0", "4"], np.array([1, 0, 1])
    forms = [CLEAN, InputVariant("shorter", 2), InputVariant("longer", 2)]
    drift = record_texts(SumBackend(), reader, texts, labels, forms, seed=0)
    assert drift.tokens is not None
    assert drift.tokens.tolist() == [[4, 8, 4], [4, 4, 4], [4, 10, 4]]
    assert drift.accuracy[:, 0].tolist() == [1, 1, 1]


def test_every_length_that_the_preprocessor_makes_is_timed(reader: TextPreprocessor) -> None:
    backend = SumBackend()
    costs = measure_lengths(backend, reader, passes=2, repeats=2)
    assert costs.lengths.tolist() == [4, 8, 10]
    assert sorted(set(backend.widths)) == [4, 8, 10]
    assert costs.costs_ms.shape == (2, 3)
    assert (costs.costs_ms[1] > costs.costs_ms[0]).all() and (costs.costs_ms > 0).all()


def test_what_is_written_is_read(reader: TextPreprocessor, tmp_path: Path) -> None:
    drift = record_texts(SumBackend(), reader, ["1 2", "0"], np.array([1, 0]), [CLEAN], seed=0)
    for costs in (None, measure_lengths(SumBackend(), reader, passes=1, repeats=1)):
        whole: DriftSet = drift._replace(length_costs=costs)
        save_drift_set(whole, tmp_path / "drift.npz")
        read = load_drift_set(tmp_path / "drift.npz")
        assert read.variants == ("clean",) and (read.log_probs == drift.log_probs).all()
        assert read.labels.tolist() == [1, 0]
        assert read.tokens is not None and read.tokens.tolist() == [[4, 4]]
        assert (read.length_costs is None) == (costs is None)
    np.savez(tmp_path / "other.npz", labels=np.zeros(1))
    with pytest.raises(ValueError, match="lacks 'forms'"):
        load_drift_set(tmp_path / "other.npz")
