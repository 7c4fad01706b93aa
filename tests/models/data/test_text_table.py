import csv
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.dataset import DataConfig
from models.data.load import load_dataset
from models.data.text_table import Columns, is_text_folder, read_texts

NAMED = Columns("text", "label")
NUMBERED = Columns("0", "1")
TSV = "text\tlabel\ngood\tyes\nbad\tno\n"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.tsv", TSV),
        ("d.TSV", "\ufeff" + TSV.replace("\n", "\r\n")),
        ("d.tsv", "id\tlabel\ttext\n1\tyes\tgood\n\n2\tno\tbad"),
        ("d.csv", "text,label\ngood,yes\nbad,no\n"),
        ("d.csv", 'text, label\r\n"good",yes\r\n\r\nbad, no \r\n'),
        ("d.jsonl", '{"text": "good", "label": "yes"}\n\n{"label": "no", "text": "bad", "x": 1}'),
        ("d.csv", "text;label\ngood;yes\nbad;no\n"),
        ("d.csv", "sep=|\ntext|label\ngood|yes\nbad|no\n"),
        ("d.csv", "text,label\n,\ngood,yes\n , ,\nbad,no\n,\n"),
        ("d.csv", "text\tlabel\ngood\tyes\nbad\tno\n".encode("utf-16")),
        ("d.csv.gz", gzip.compress(b"text,label\ngood,yes\nbad,no\n", mtime=0)),
    ],
)
def test_rows_are_read_by_the_names_of_their_columns(
    tmp_path: Path, name: str, content: str | bytes
) -> None:
    found = read_texts(write(tmp_path / name, content), NAMED)
    assert found.inputs == ["good", "bad"]
    assert found.classes == ("no", "yes")
    assert found.labels.tolist() == [1, 0]
    assert found.is_test is None


@pytest.mark.parametrize("name", ["d.csv", "d.tsv"])
def test_a_table_without_a_header_is_read_by_number(tmp_path: Path, name: str) -> None:
    comma = "," if name == "d.csv" else "\t"
    lines = ["1,good,yes", "2,bad,no", "3,fine,yes"]
    path = write(tmp_path / name, "\n".join(lines).replace(",", comma))
    found = read_texts(path, Columns("1", "2"))
    assert found.inputs == ["good", "bad", "fine"]
    assert found.labels.tolist() == [1, 0, 1]


def test_a_header_may_consist_of_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "0,1\ngood,yes\nbad,no\n")
    assert read_texts(path, NUMBERED).inputs == ["good", "bad"]


def test_a_header_read_as_a_row_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "d.tsv", TSV)
    with pytest.raises(ValueError, match=r"line 1 of .* has the label 'label', which no other"):
        read_texts(path, NUMBERED)


def test_a_csv_quotes_and_a_tsv_does_not(tmp_path: Path) -> None:
    table = write(tmp_path / "d.csv", 'text,label\n"a ""b"", c\nd",x\n"e",y\n')
    assert read_texts(table, NAMED).inputs == ['a "b", c\nd', "e"]
    table = write(tmp_path / "d.tsv", 'text\tlabel\n"a, ""b\tx\n"e"\ty\n')
    assert read_texts(table, NAMED).inputs == ['"a, ""b', '"e"']


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For files that one example after another overwrites."""
    return tmp_path_factory.mktemp("texts")


@settings(deadline=None)  # each example writes two files
@given(st.lists(TEXTS, min_size=2))
def test_any_text_survives_csv_and_json(folder: Path, texts: list[str]) -> None:
    labels = [i % 2 for i in range(len(texts))]
    with (folder / "d.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    with (folder / "d.jsonl").open("w", encoding="utf-8", newline="") as file:
        for text, label in zip(texts, labels, strict=True):
            print(json.dumps({"text": text, "label": label}, ensure_ascii=False), file=file)
    for name in ("d.csv", "d.jsonl"):
        found = read_texts(folder / name, NAMED)
        assert (found.inputs, found.labels.tolist()) == (texts, labels)


def test_json_labels_may_be_integers_and_truths(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "t", "label": label}) for label in (10, 9, "8")]
    assert read_texts(write(tmp_path / "a.jsonl", "\n".join(lines)), NAMED).classes == (
        "8",
        "9",
        "10",
    )
    lines = [json.dumps({"text": "t", "label": label}) for label in (True, False)]
    found = read_texts(write(tmp_path / "b.jsonl", "\n".join(lines)), NAMED)
    assert found.classes == ("false", "true")


@pytest.mark.parametrize(
    ("files", "tests"),
    [
        (("train.tsv", "test.tsv"), 1),
        (("train.tsv", "test.csv"), 1),
        (("train.tsv", "validation.jsonl"), 2),
        (("train.tsv", "test.csv", "validation.jsonl"), 1),
    ],
)
def test_a_folder_holds_training_and_test_table(
    tmp_path: Path, files: tuple[str, ...], tests: int
) -> None:
    contents = {
        "train.tsv": TSV + "so\tso\n",
        "test.tsv": "text\tlabel\nT1\tyes\nT1\tno\nT1\tso\n",
        "test.csv": "text,label\nT1,yes\nT1,no\nT1,so\n",
        "validation.jsonl": "".join(
            json.dumps({"text": "T2", "label": label}) + "\n" for label in ("yes", "no", "so")
        ),
    }
    for name in files:
        write(tmp_path / name, contents[name])
    assert is_text_folder(tmp_path)
    found = read_texts(tmp_path, NAMED)
    assert found.is_test is not None
    assert found.is_test.tolist() == [False] * 3 + [True] * 3
    assert found.inputs == ["good", "bad", "so"] + [f"T{tests}"] * 3


def test_a_folder_without_a_test_table_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", TSV)
    with pytest.raises(ValueError, match=r"holds train.tsv but no table test, testing, val"):
        read_texts(tmp_path, NAMED)


def test_two_training_tables_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", TSV)
    write(tmp_path / "train.csv", "text,label\na,b\n")
    with pytest.raises(ValueError, match=r"holds both train\.csv and train\.tsv; remove one"):
        read_texts(tmp_path, NAMED)


def test_a_label_of_the_test_table_alone_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", TSV)
    write(tmp_path / "test.tsv", TSV + "odd\tperhaps\n")
    with pytest.raises(ValueError, match=r"the training rows of .* lack the class 'perhaps'"):
        read_texts(tmp_path, NAMED)


BAD = [
    ("d.tsv", "", "holds no texts"),
    ("d.csv", "\n\n", "holds no texts"),
    ("d.jsonl", "\n", "holds no texts"),
    ("d.tsv", "text\tlabel\n", "holds no texts"),
    ("d.tsv", TSV + "a\tb\tc\n", "line 4 of .* has 3 columns, but the first row has 2"),
    ("d.csv", "text,label\n\n'a\nb',x\n", "line 3 of .* has 1 columns, but the first row has 2"),
    ("d.csv", 'text,label\n"a\nb",x,y\n', "line 2 of .* has 3 columns, but the first row has 2"),
    ("d.csv", 'text,label\na,b\n"c"d,e\n', "row that begins in line 3 of .* is not valid CSV"),
    ("d.csv", 'text,label\na,b\n"c,e\nf,g\n', "row that begins in line 3 of .* is not valid CSV"),
    ("d.tsv", TSV + " \tyes\n", "line 4 of .* has an empty text; remove the row"),
    ("d.tsv", TSV + "fine\t \n", "line 4 of .* has an empty label; remove the row"),
    ("d.tsv", TSV.encode() + b"caf\xe9\tyes\n", "line 4 of .* is not UTF-8; save the file"),
    ("d.csv", "text,label\na,b\n".encode("utf-16")[:-1], "line 2 of .* is not UTF-8; save"),
    ("d.jsonl", '{"text": "a", "label": 1}\n{"text"\n', "line 2 of .* is not valid JSON: "),
    ("d.jsonl", "[1]\n", "item 0 of .* is not a JSON object"),
    ("d.jsonl", "1\n", "line 1 of .* is not a JSON object"),
    ("d.jsonl", '{"text": 1, "label": 1}', "line 1 of .* has the text 1; it must be a string"),
    ("d.jsonl", '{"text": "a", "label": 0.5}', r"has the label 0\.5; it must be a string or an"),
    ("d.jsonl", '{"text": "a", "label": null}', "line 1 of .* has an empty label"),
    ("d.tsv", TSV + " \tyes\na\t\n", r"has an empty text; remove the row \(2 such rows in all\)"),
    ("d.jsonl", '{"text": "a"}', "line 1 of .* has the columns 'text', not 'text' and 'label'"),
    ("d.csv", "a,label\nb,c\n", "columns 'a', 'label', not 'text' and 'label'; name the right"),
    ("d.csv", f"{'x' * 99},label\nb,c\n", r"columns 'x{30}\.\.\.', 'label', not"),
    ("d.csv", "text:label\nb:c\n", "columns 'text:label', not"),
    ("d.csv", "text,label\na,test\nb,train\n", "'test', 'train', which are names of splits"),
    ("d.tsv", "text\tlabel\na\tyes\n", r"has 1 class \('yes'\); a classifier needs two"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_a_bad_table_is_one_sentence_with_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_texts(path, NAMED)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("columns", [Columns("0", "2"), Columns("text", "1"), Columns("-1", "0")])
def test_a_column_that_is_not_there_is_named(tmp_path: Path, columns: Columns) -> None:
    path = write(tmp_path / "d.tsv", "good\tyes\nbad\tno\n")
    with pytest.raises(
        ValueError,
        match=f"'good', 'yes', not '{columns.text}' and '{columns.label}'; .* numbers from 0 on",
    ):
        read_texts(path, columns)


def test_half_a_character_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        '{"text": "a", "label": 0}\n{"text": "\\ud800", "label": 1}\n'
    )
    with pytest.raises(ValueError, match=r"line 2 of .*t\.jsonl holds half of a surrogate pair"):
        load_dataset(DataConfig(str(tmp_path / "t.jsonl")))


def test_a_text_may_be_longer_than_the_csv_modules_limit(tmp_path: Path) -> None:
    rows = "".join(f"{'word ' * 30_000}{i},{i % 2}\n" for i in range(40))
    (tmp_path / "t.csv").write_text("text,label\n" + rows)
    assert len(load_dataset(DataConfig(str(tmp_path / "t.csv"))).train.inputs[0]) > 100_000


def test_rows_that_lack_a_part_may_be_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "d.tsv", TSV + " \tyes\na\t\n")
    found = read_texts(path, NAMED, skip_damaged=True)
    assert found.inputs == ["good", "bad"]
    assert found.notes == (f"passed over rows of {path} without text or label: 2 (line 4, line 5)",)


def test_tables_are_found_in_any_case_and_others_are_told(tmp_path: Path) -> None:
    write(tmp_path / "TRAIN.csv", "text,label\na,x\nb,y\n")
    write(tmp_path / "Dev.csv", "text,label\nc,x\nd,y\n")
    write(tmp_path / "sample_submission.csv", "id\n")
    found = read_texts(tmp_path, NAMED)
    assert found.inputs == ["a", "b", "c", "d"]
    assert found.notes == (f"passed over other tables of {tmp_path}: sample_submission.csv",)


def test_the_parts_of_a_table_are_read_in_order(tmp_path: Path) -> None:
    for part, text in enumerate("ab"):
        name = f"train-0000{part}-of-00002.csv"
        write(tmp_path / name, f"text,label\n{text},x\n{text}{text},y\n")
    write(tmp_path / "test.csv", "text,label\nc,x\nd,y\n")
    assert read_texts(tmp_path, NAMED).inputs == ["a", "aa", "b", "bb", "c", "d"]


def test_two_columns_are_a_pair_and_a_plus_joins(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "a,b,label\none,two,x\nthree,four,y\n")
    assert read_texts(path, Columns("a,b", "label")).inputs == [("one", "two"), ("three", "four")]
    assert read_texts(path, Columns("a+b", "label")).inputs == ["one two", "three four"]
    with pytest.raises(ValueError, match=r"names 3 columns; a pair has two, and a plus joins"):
        Columns("a,b,c", "label")
