import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from models.data.objects import plain_label, read_json
from models.data.text_table import Columns, read_texts

NAMES = ("text", "label")
ROWS = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]
DOCUMENTS = {
    "lines": "\n".join(map(json.dumps, ROWS)),
    "array": json.dumps(ROWS, indent=1),
    "array in an object": json.dumps({"version": 1, "data": ROWS}),
    "columns": json.dumps({"text": ["good", "bad"], "label": [1, 0]}),
    "pandas": json.dumps({"text": {"0": "good", "1": "bad"}, "label": {"0": 1, "1": 0}}),
}


@pytest.mark.parametrize("form", DOCUMENTS)
@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_json_is_read_in_every_usual_form(form: str, name: str, tmp_path: Path) -> None:
    assert [row for _, row in read_json(tmp_path / name, DOCUMENTS[form], NAMES)] == ROWS


def test_columns_of_different_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="differ in length"):
        list(read_json(tmp_path / "d.json", '{"text": ["a"], "label": []}', NAMES))


def test_an_array_that_is_cut_off_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"d\.json is not valid JSON"):
        list(read_json(tmp_path / "d.json", DOCUMENTS["array"][:-3], NAMES))


@pytest.mark.parametrize(
    ("label", "plain"),
    [
        (1, "1"),
        (1.0, "1"),
        (" a ", "a"),
        (None, ""),
        (float("nan"), ""),
        (True, "true"),
        (0.5, None),
    ],
)
def test_labels_become_texts(label: object, plain: str | None) -> None:
    assert plain_label(label) == plain


def write_parquet(path: Path, labels: list[object], classes: list[str] | None = None) -> Path:
    table = pyarrow.table({"text": [f"t{i}" for i in range(len(labels))], "label": labels})
    if classes:
        features = {"info": {"features": {"label": {"names": classes, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(table, path)
    return path


def test_parquet_is_read(tmp_path: Path) -> None:
    found = read_texts(write_parquet(tmp_path / "d.parquet", [1, 0, 1]), Columns(*NAMES))
    assert (found.inputs, found.classes) == (["t0", "t1", "t2"], ("0", "1"))
    assert found.labels.tolist() == [1, 0, 1]


def test_whole_numbers_of_a_column_with_gaps_have_no_point(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d.parquet", [1.0, 0.0, None])
    with pytest.raises(ValueError, match=r"row 2 of .*d\.parquet has an empty label"):
        read_texts(path, Columns(*NAMES))
    assert read_texts(path, Columns(*NAMES), skip_damaged=True).classes == ("0", "1")


def test_the_class_names_of_a_parquet_file_are_taken(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d.parquet", [1, 0], ["no", "yes"])
    assert read_texts(path, Columns(*NAMES)).classes == ("no", "yes")


def test_a_damaged_parquet_file_is_one_sentence(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d.parquet", [1, 0])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"d\.parquet is damaged or no Parquet file"):
        read_texts(path, Columns(*NAMES))
