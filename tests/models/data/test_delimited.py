from pathlib import Path

import pytest

from models.data.delimited import find_delimiter, split_csv, split_tsv

NAMES = ("text", "label")
PATH = Path("d.csv")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_one_that_shows_the_columns(delimiter: str) -> None:
    rows = [NAMES, ("a, b; c | d" if delimiter == "\t" else "a", "x")]
    content = "\n".join(delimiter.join(row) for row in rows)
    assert find_delimiter(content, NAMES) == delimiter
    assert [fields for _, fields in split_csv(PATH, content, NAMES)] == [list(row) for row in rows]


def test_without_a_header_it_is_the_most_regular() -> None:
    assert find_delimiter("well, good;yes\nbad;no\n", ("0", "1")) == ";"
    assert find_delimiter("one\ntwo\n", ("0", "1")) == ","


@pytest.mark.parametrize(
    "first",
    ["sep=;\n", "sep=;\r\n", '"sep=;"\n', "SEP=;\n"],
    ids=["unix", "windows", "quoted", "upper"],
)
def test_a_first_line_may_name_the_delimiter(first: str) -> None:
    rows = list(split_csv(PATH, f"{first}a,b;c\n\nd;e\n", NAMES))
    assert rows == [(2, ["a,b", "c"]), (4, ["d", "e"])]


def test_quotes_work_with_any_delimiter() -> None:
    content = 'text;label\n"a; ""b""\nc";x\n'
    assert list(split_csv(PATH, content, NAMES))[1] == (2, ['a; "b"\nc', "x"])


def test_a_tsv_has_no_quotes() -> None:
    assert list(split_tsv('a"\t1\r\n\n"b\t2')) == [(1, ['a"', "1"]), (3, ['"b', "2"])]
