import pytest

from models.data.split_names import TEST_NAMES, TRAIN_NAMES, find_split, is_split_name


@pytest.mark.parametrize("name", ["train", "TRAINING", "Val", "valid", "VALIDATION", "test", "Dev"])
def test_usual_names_are_splits_in_any_case(name: str) -> None:
    assert is_split_name(name)


@pytest.mark.parametrize("name", ["trainer", "cat", "tests", ""])
def test_other_names_are_classes(name: str) -> None:
    assert not is_split_name(name)


def test_the_first_wanted_split_that_exists_is_found() -> None:
    assert find_split(TEST_NAMES, ["Train", "DEV", "Val"]) == ["Val"]
    assert find_split(TRAIN_NAMES, ["Training", "test"]) == ["Training"]
    assert find_split(TRAIN_NAMES, ["cat"]) == []
    assert find_split(TRAIN_NAMES, ["train", "Train"]) == ["Train", "train"]


def test_the_parts_of_a_table_are_one_split() -> None:
    parts = [f"train-0000{i}-of-00002" for i in range(2)]
    assert find_split(TRAIN_NAMES, [*parts, "test-00000-of-00001"]) == parts
