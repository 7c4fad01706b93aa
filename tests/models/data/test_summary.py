import numpy as np

from models.data.dataset import Dataset, Split
from models.data.summary import summarise, warnings_of


def split(*counts: int) -> Split:
    labels = np.repeat(np.arange(len(counts)), counts)
    return Split(["t"] * len(labels), labels)


def test_the_summary_says_all_at_once() -> None:
    data = Dataset("text", ("a", "A"), split(40, 30), split(10, 8), split(5, 4))
    lines = summarise(data, "d.csv", ["held out 9 rows"]).splitlines()
    assert lines[0] == "d.csv: text, 2 classes"
    assert lines[1] == "rows: train 70, calibration 18, test 9"
    assert lines[-2] == "held out 9 rows"
    assert lines[-1].startswith("warning: classes 'a' (55 rows), 'A' (42 rows) differ only")


def test_a_balanced_dataset_has_no_warning() -> None:
    data = Dataset("text", ("a", "b"), split(40, 30), split(10, 8), split(5, 4))
    assert list(warnings_of(data)) == []


def test_imbalance_and_absent_classes_are_warned_of() -> None:
    data = Dataset("text", ("a", "b"), split(100, 10), split(10, 0), split(5, 4))
    imbalance, absent = warnings_of(data)
    assert imbalance == "imbalance: 'a' has 100 training rows, 'b' 10"
    assert absent.startswith("no calibration row has the class 'b'; add rows")


def test_rows_of_several_classes_count_for_each() -> None:
    labels = np.array([[1, 1], [1, 0], [0, 0]])
    part = Split(["t"] * 3, labels)
    lines = summarise(Dataset("text", ("a", "b"), part, part, part), "d", []).splitlines()
    assert lines[0] == "d: text, 2 classes, any number of which a row may have"
    assert [line.split() for line in lines[3:5]] == [["a", "2", "2", "2"], ["b", "1", "1", "1"]]
