import logging
from pathlib import Path

import numpy as np
import pytest

from models.data.counts import count_classes
from models.data.dataset import DataConfig, Dataset, Split
from models.data.load import load_dataset


def rows_of(*counts: int) -> Split:
    labels = np.repeat(np.arange(len(counts)), counts)
    return Split(["text"] * len(labels), labels)


def test_the_rows_of_every_class_and_split_are_listed() -> None:
    certification = rows_of(1, 0)
    data = Dataset(
        "text", ("a", "long name"), rows_of(60, 4), rows_of(16, 1), rows_of(8, 2), certification
    )
    first, head, *lines = count_classes(data)
    assert first == "rows: train 64, calibration 17, certification 1, test 10"
    assert head.split() == ["class", "train", "calibration", "certification", "test"]
    assert [line.split()[-4:] for line in lines] == [["60", "16", "1", "8"], ["4", "1", "0", "2"]]
    assert lines[1].startswith("long name ")


def test_of_many_classes_the_rarest_and_the_most_frequent_are_told() -> None:
    counts = [5] * 30
    counts[3], counts[7] = 1, 9
    part = rows_of(*counts)
    data = Dataset("text", tuple(f"c{k}" for k in range(30)), part, part, part)
    _, *lines = count_classes(data)
    assert lines == [
        f"{name}: 1 (c3) to 9 (c7) rows of each of 30 classes"
        for name in ("train", "calibration", "test")
    ]


def test_loading_tells_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = tmp_path / "data.csv"
    texts = [f"text {i},{'a' if i < 76 else 'b'}" for i in range(79)]
    table.write_text("text,label\n" + "\n".join(texts) + "\n")
    with caplog.at_level(logging.INFO, "models"):
        data = load_dataset(DataConfig(str(table)))
    assert np.bincount(data.calibration.labels).tolist() == [13, 1]
    assert f"rows: train {len(data.train.labels)}, calibration 14, test 9" in caplog.text
