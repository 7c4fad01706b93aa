import pytest

from models.training.class_match import match_classes

SENTIMENT = {"0": "negative", "1": "positive"}


@pytest.mark.parametrize(
    ("classes", "id2label", "names", "order"),
    [
        (("negative", "positive"), SENTIMENT, ("negative", "positive"), (0, 1)),
        (("NEGATIVE", "POSITIVE"), {"0": "positive", "1": "negative"}, None, (1, 0)),
        ((" Positive", "negative"), SENTIMENT, None, (1, 0)),
        (("0", "1"), SENTIMENT, ("negative", "positive"), (0, 1)),
        (("0", "1"), {"0": "LABEL_0", "1": "LABEL_1"}, None, (0, 1)),
        (("0", "1"), {"0": "1", "1": "0"}, None, (1, 0)),  # names go before numbers
        (("10", "2"), {str(i): f"LABEL_{i}" for i in range(2)}, None, None),
        (("bad", "good"), SENTIMENT, None, None),
        (("bad", "good"), {"0": "LABEL_0", "1": "LABEL_1"}, None, None),
        (("negative", "neutral", "positive"), SENTIMENT, None, None),
        (("a", "A"), {"0": "a", "1": "b"}, None, None),
    ],
)
def test_classes_are_matched_by_name_without_case_or_by_number(
    classes: tuple[str, ...],
    id2label: dict[str, str],
    names: tuple[str, ...] | None,
    order: tuple[int, ...] | None,
) -> None:
    found = match_classes(classes, id2label)
    assert found.names == (names or classes)
    assert found.order == order


def test_ten_numbers_are_sorted_by_value() -> None:
    id2label = {str(i): f"name {i}" for i in range(12)}
    classes = tuple(map(str, range(12)))
    assert match_classes(classes, id2label).names == tuple(id2label.values())


def test_the_sentence_says_why_not() -> None:
    assert (
        "it has 2 classes (negative, positive), the dataset 3"
        in match_classes(("a", "b", "c"), SENTIMENT).sentence
    )
    placeholders = {"0": "LABEL_0", "1": "LABEL_1"}
    assert "does not tell their order" in match_classes(("a", "b"), placeholders).sentence
    assert (
        "its classes are negative, positive, not a, b"
        in match_classes(("a", "b"), SENTIMENT).sentence
    )
