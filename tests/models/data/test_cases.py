"""Datasets that were misread once; tests/data/cases holds one of each kind."""

import logging
from pathlib import Path

import pytest

from models.data.dataset import DataConfig, Dataset
from models.data.load import load_dataset

CASES = Path(__file__).resolve().parents[2] / "data/cases"


def load(name: str, caplog: pytest.LogCaptureFixture, **settings: object) -> tuple[Dataset, str]:
    """The dataset, and the last thing that loading logs: its summary."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "models"):
        data = load_dataset(DataConfig(str(CASES / name), **settings))
    return data, caplog.messages[-1]


def rows(data: Dataset) -> int:
    return sum(len(split.labels) for split in (data.train, data.calibration, data.test))


@pytest.mark.parametrize("name", ["semicolon.csv", "sep.csv", "empty-rows.csv"])
def test_a_table_is_read_whatever_wrote_it(name: str, caplog: pytest.LogCaptureFixture) -> None:
    data, summary = load(name, caplog)
    assert (data.classes, rows(data)) == (("NEGATIVE", "POSITIVE"), 80)
    assert "warning" not in summary
    passed_over = "passed over rows of" in summary and "3 (line 82, line 83, line 84)" in summary
    assert passed_over == (name == "empty-rows.csv")


def test_one_number_is_one_class(caplog: pytest.LogCaptureFixture) -> None:
    data, summary = load("one-and-one-point-zero.csv", caplog)
    assert data.classes == ("0", "1")
    assert "labels in two number formats are one class: '0.0' as '0', '1.0' as '1'" in summary


def test_classes_that_differ_in_case_are_named(caplog: pytest.LogCaptureFixture) -> None:
    _, summary = load("case.csv", caplog)
    assert "warning: classes 'NEGATIVE' (34 rows), 'Negative' (6 rows) differ only" in summary
    assert "warning: classes 'POSITIVE' (34 rows), 'Positive' (6 rows) differ only" in summary
    assert caplog.records[-1].levelno == logging.WARNING


def test_an_absent_label_that_became_a_class_is_named(caplog: pytest.LogCaptureFixture) -> None:
    _, summary = load("nan.csv", caplog)
    assert "warning: class 'nan' (2 rows) looks like an absent label; remove" in summary


def test_the_imbalance_is_told_and_no_split_lacks_a_class(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data, summary = load("imbalance.csv", caplog)
    assert "warning: imbalance: 'a' has 56 training rows, 'b' 1; little can be learned" in summary
    for split in (data.train, data.calibration, data.test):
        assert set(split.labels.tolist()) == {0, 1}


def test_repeats_that_contradict_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(
        ValueError,
        match=r"class 'POSITIVE' has too few rows \(0\).*; 40 of 60 dropped repeats contradict",
    ):
        load("contradiction.csv", caplog)


def test_a_class_of_the_test_split_alone_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(
        ValueError, match=r"lack the class '-1', which 20 of 20 test rows have; -1 marks labels"
    ):
        load("glue", caplog)


def test_splits_are_found_in_any_case(caplog: pytest.LogCaptureFixture) -> None:
    data, _ = load("capital-split", caplog, image_size=32)
    assert data.classes == ("apple", "plum")
    assert (len(data.train.labels) + len(data.calibration.labels), len(data.test.labels)) == (12, 6)


def test_images_of_all_suffixes_are_read(caplog: pytest.LogCaptureFixture) -> None:
    data, _ = load("suffixes", caplog, image_size=32)
    assert rows(data) == 18


def test_folders_that_differ_in_case_are_named(caplog: pytest.LogCaptureFixture) -> None:
    _, summary = load("folder-case", caplog, image_size=32)
    assert "warning: classes 'Cat' (4 rows), 'cat' (4 rows) differ only in case" in summary
