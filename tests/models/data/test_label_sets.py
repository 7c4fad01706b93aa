from pathlib import Path

import numpy as np
import pytest

from models.data.dataset import DataConfig
from models.data.label_sets import index_label_sets, split_labels
from models.data.load import load_dataset
from models.data.text_table import Columns, read_texts


@pytest.mark.parametrize("columns", [Columns("text", "label", "|"), Columns("text", "a,b")])
def test_labels_of_a_row_come_from_one_column_or_several(tmp_path: Path, columns: Columns) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,label,a,b\nt0,a|b,1,1\nt1,b,0,1\nt2,,0,0\n")
    found = read_texts(path, columns)
    assert found.classes == ("a", "b")
    assert found.labels.tolist() == [[1, 1], [0, 1], [0, 0]]


def test_a_list_in_json_is_several_labels(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "t", "label": ["x", "y"]}\n{"text": "u", "label": []}\n')
    found = read_texts(path, Columns("text", "label"))
    assert (found.classes, found.labels.tolist()) == (("x", "y"), [[1, 1], [0, 0]])


@pytest.mark.parametrize("value", ["1", "1.0", 1, 1.0, True, "true", "Yes"])
def test_a_column_per_class_holds_truths(value: object) -> None:
    values = {"a": value, "b": "0", "c": None}
    assert split_labels("line 2 of d", values, ("a", "b", "c"), None) == {
        "a": True,
        "b": False,
        "c": False,
    }


def test_anything_else_in_such_a_column_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2 of d has 3 in the column 'a'; a column per class"):
        split_labels("line 2 of d", {"a": 3, "b": 0}, ("a", "b"), None)


def test_a_label_without_rows_in_a_split_is_named() -> None:
    sets, is_test = [{"a": True, "b": True}, {"a": True}], np.array([False, True])
    with pytest.raises(ValueError, match="no test row of d has the label 'b'"):
        index_label_sets(sets, is_test, "d")
    with pytest.raises(ValueError, match="d has 1 labels; a classifier of several labels needs"):
        index_label_sets([{"a": True}], None, "d")


def test_every_split_has_rows_of_every_label_in_proportion(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    lines = [f"text {i},{'a|b' if i % 4 == 0 else 'b' if i % 4 < 3 else ''}" for i in range(200)]
    path.write_text("text,label\n" + "\n".join(lines))
    data = load_dataset(DataConfig(str(path), label_separator="|"))
    for split in (data.train, data.calibration, data.test):
        share_a, share_b = split.labels.mean(0)
        assert share_a == pytest.approx(0.25, abs=0.03) and share_b == pytest.approx(0.75, abs=0.03)
