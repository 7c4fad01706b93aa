import json
from pathlib import Path

import numpy as np
import pytest

from models.data.text_table import Columns
from profiling.loadtest.inputs import Inputs, read_inputs
from profiling.loadtest.variants import InputVariant

CLEAN = InputVariant("clean", 0)


def test_folders_of_images_are_labelled_by_their_folders(tmp_path: Path) -> None:
    for name in ("ape", "bee"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(name.encode())
    (tmp_path / "ape" / "note.txt").write_text("no image")
    labelled = read_inputs(tmp_path, None)
    assert (labelled.items, labelled.labels) == ([b"ape", b"bee"], ["ape", "bee"])
    (tmp_path / "2.png").write_bytes(b"flat")
    assert read_inputs(tmp_path, None).labels is None


def test_of_a_whole_archive_the_test_images_are_sent(tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    blob, test = np.arange(4, dtype=np.uint8), np.array([0, 1, 0, 1], bool)
    np.savez(path, blob=blob, off=np.arange(5), y=np.arange(4), test=test)
    inputs = read_inputs(path, None)
    assert (inputs.items, inputs.labels) == ([b"\x01", b"\x03"], [1, 3])


def test_without_a_word_the_shipped_images_are_sent() -> None:
    inputs = read_inputs(None, None)
    assert len(inputs.items) == 300 and inputs.labels is not None
    assert all(body.startswith(b"\xff\xd8") for body in inputs.files)


def test_texts_are_read_by_header_or_by_number(tmp_path: Path) -> None:
    path = tmp_path / "texts.tsv"
    path.write_text("label\ttext\n1\tabc\n0\tab\n")
    assert read_inputs(None, path) == Inputs("text", ["abc", "ab"], [1, 0])
    path.write_text("abc\tbee\nab\tape\nb\tbee\n")
    assert read_inputs(None, path, Columns("0", "1")).labels == ["bee", "ape", "bee"]


def test_bodies_are_images_as_they_are_and_texts_as_json() -> None:
    images = Inputs("image", [b"one", b"two"], None)
    assert images.bodies(CLEAN, seed=0) == [b"one", b"two"]
    assert images.content_type == "image/jpeg"
    texts = Inputs("text", ["one two", "three"], None)
    assert texts.content_type == "application/json"
    said = [json.loads(body)["text"] for body in texts.bodies(InputVariant("shorter", 1), seed=0)]
    assert said == ["one", "three"]
    assert texts.bodies(InputVariant("misspelt", 100), 0) != texts.bodies(
        InputVariant("misspelt", 100), 1
    )


def test_classes_are_named_as_labels_are() -> None:
    numbered = Inputs("image", [b"a", b"b", b"c"], [3, 5, 3])
    assert numbered.rows_of(None) == [0, 1, 2] and numbered.rows_of(["3"]) == [0, 2]
    assert numbered.of_rows([2, 1]) == Inputs("image", [b"c", b"b"], [3, 5])
    with pytest.raises(ValueError, match="class 'cat'; --classes may name 3, 5"):
        numbered.rows_of(["cat"])
    with pytest.raises(ValueError, match="have none"):
        Inputs("image", [b"a"], None).rows_of(["3"])
