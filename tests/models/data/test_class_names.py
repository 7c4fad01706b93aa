import pytest

from models.data.class_names import (
    comparable,
    name_warnings,
    similar_names,
    sort_classes,
    unify_numbers,
)


def test_numbers_are_sorted_by_value_and_others_as_texts() -> None:
    assert sort_classes({"10", "9", "-1"}) == ("-1", "9", "10")
    assert sort_classes({"b", "10", "9"}) == ("10", "9", "b")


@pytest.mark.parametrize(
    ("names", "unified"),
    [
        (("1", "1.0", "0", "0.0"), {"1.0": "1", "0.0": "0"}),
        (("1.0", "0.0"), {}),
        (("1", "1.5"), {}),
        (("-1", "-1.00"), {"-1.00": "-1"}),
        (("01", "1"), {}),  # may be codes
    ],
)
def test_a_number_in_two_formats_is_one(names: tuple[str, ...], unified: dict[str, str]) -> None:
    assert unify_numbers(dict.fromkeys(names, 1)) == unified


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cat", "cat"),
        ("x", " x"),
        ("1", "01"),
        ("1", "1e0"),
        ("sci-tech", "Sci_Tech"),
        ("STRASSE", "straße"),
    ],
)
def test_names_that_may_be_one_class_are_found(one: str, other: str) -> None:
    assert comparable(one) == comparable(other)
    assert similar_names(["dog", one, other]) == [(one, other)]


@pytest.mark.parametrize(("one", "other"), [("cat", "cats"), ("1", "10"), ("a", "ä"), ("+", "-")])
def test_names_that_are_two_classes_are_not(one: str, other: str) -> None:
    assert similar_names([one, other]) == []


@pytest.mark.parametrize("name", ["nan", "NaN", "None", "null", "N/A", "?", "<NA>"])
def test_absent_labels_are_named(name: str) -> None:
    (sentence,) = name_warnings({"a": 5, name: 2})
    assert f"class {name!r} (2 rows) looks like an absent label" in sentence
