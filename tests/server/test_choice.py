from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.choice import ModelTable, get_model, select_models, version_order
from server.errors import InvalidContent, UnknownModel


class Model(NamedTuple):
    name: str
    version: str


CAT_9, CAT_10, DOG = Model("cat", "9"), Model("cat", "10"), Model("dog", "1")


@pytest.fixture
def table() -> ModelTable[Model]:
    return ModelTable([CAT_10, DOG, CAT_9])


def test_a_name_means_its_latest_version(table: ModelTable[Model]) -> None:
    assert table.find("cat") is CAT_10
    assert table.latest() == [CAT_10, DOG]
    assert get_model(table, "cat") is CAT_10


@pytest.mark.parametrize(("name", "version"), [("cat@9", None), ("cat", "9"), ("cat@9", "9")])
def test_a_version_is_chosen(table: ModelTable[Model], name: str, version: str | None) -> None:
    assert table.find(name, version) is CAT_9


def test_two_versions_in_one_request_contradict_each_other(table: ModelTable[Model]) -> None:
    with pytest.raises(InvalidContent, match=r"'9' and version is '10'"):
        table.find("cat@9", "10")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cow", r"no model 'cow' is loaded; name one of cat \(9 10\), dog"),
        ("cat@7", r"model 'cat' has no version '7' loaded; name one of 9, 10"),
        ("cat@", r"has no version ''"),
        ("@1", r"no model '' is loaded"),
    ],
)
def test_what_is_unknown_lists_what_there_is(
    table: ModelTable[Model], name: str, sentence: str
) -> None:
    with pytest.raises(UnknownModel, match=sentence):
        table.find(name)


def test_without_models_a_request_learns_how_to_load_one() -> None:
    empty = ModelTable[Model]()
    for name in (None, "cat"):
        with pytest.raises(UnknownModel, match="no model is loaded; load one"):
            get_model(empty, name)
    assert select_models(empty, None) == []


def test_without_a_name_versions_of_one_model_are_one(table: ModelTable[Model]) -> None:
    with pytest.raises(InvalidContent, match="several models"):
        get_model(table, None)
    table.remove(DOG)
    assert get_model(table, None) is CAT_10


def test_operators_mean_all_versions_of_a_name(table: ModelTable[Model]) -> None:
    assert select_models(table, "cat") == [CAT_9, CAT_10]
    assert select_models(table, "cat@9") == [CAT_9]
    assert select_models(table, None) == [CAT_10, DOG, CAT_9]


def test_a_model_takes_the_place_of_one_of_its_version(table: ModelTable[Model]) -> None:
    again = Model("cat", "10")
    table.add(again)
    assert len(table) == 3
    assert table.find("cat") is again
    table.remove(CAT_10)  # which is not served any more; equal, but another one
    assert table.find("cat") is again


@pytest.mark.parametrize(
    "versions",
    [["9", "10"], ["1.9", "1.10"], ["a", "1"], ["1", "1.1"], ["2", "10", "010a"], ["v2", "v10"]],
)
def test_versions_are_in_the_order_of_their_numbers(versions: list[str]) -> None:
    assert sorted(reversed(versions), key=version_order) == versions


@given(st.lists(st.text(max_size=8), max_size=8))
def test_any_versions_can_be_ordered(versions: list[str]) -> None:
    assert sorted(versions, key=version_order) == sorted(reversed(versions), key=version_order) or (
        len({str(version_order(each)) for each in versions}) < len(versions)
    )
