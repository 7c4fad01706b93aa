import logging
from collections import Counter

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.dataset import CalibrationSource
from models.data.images import EncodedImages
from models.data.samples import Samples, index_labels, split_rows


def samples(texts: list[str], labels: list[int], is_test: list[bool] | None = None) -> Samples:
    marks = None if is_test is None else np.array(is_test)
    return Samples(("a", "b"), texts, np.array(labels), marks)


CALIBRATIONS: tuple[tuple[int, CalibrationSource], ...] = ((1, "train"), (1, "test"), (3, "test"))


@st.composite
def data_sets(draw: st.DrawFn) -> Samples:
    """Draw up to 60 texts with duplicates, at least two different ones for training."""
    texts = draw(st.lists(st.sampled_from([f"t{i}" for i in range(40)]), max_size=60))
    labels = draw(st.lists(st.integers(0, 1), min_size=len(texts), max_size=len(texts)))
    is_test = draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    texts += ["new 0", "new 1", "new 2", "new 3", "old"]
    return samples(texts, [*labels, 0, 0, 1, 1, 0], [*is_test, False, False, False, False, True])


@given(data_sets(), st.integers(0, 3), st.booleans())
def test_splits_share_no_input_and_lose_none(data: Samples, seed: int, ours: bool) -> None:
    if ours:
        data = data._replace(is_test=None)
    split = split_rows(data, None, seed)
    train, calibration, _, test = ([data.inputs[row] for row in part] for part in split)
    assert not set(train) & set(calibration)
    assert not set(train + calibration) & set(test)
    assert len(split.certification) == 0
    assert set(train + calibration + test) == set(data.inputs)
    assert max(Counter(train + calibration).values()) == 1
    for part in split:
        assert part.tolist() == sorted(part)


@given(data_sets(), st.integers(0, 3), st.booleans())
def test_the_seed_alone_picks_the_splits(data: Samples, seed: int, ours: bool) -> None:
    if ours:
        data = data._replace(is_test=None)
    first, second = split_rows(data, 2, seed), split_rows(data, 2, seed)
    assert [part.tolist() for part in first] == [part.tolist() for part in second]


@given(data_sets())
def test_a_test_set_that_came_with_the_data_stays_as_it_is(data: Samples) -> None:
    assert data.is_test is not None
    assert split_rows(data, None, 0).test.tolist() == np.flatnonzero(data.is_test).tolist()


def test_of_repeated_inputs_the_first_stays_and_the_log_tells(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = samples(
        ["x", "y", "x ", "z", "y", "w", "z"],
        [0, 1, 1, 0, 0, 1, 0],
        [False] * 6 + [True],
    )
    with caplog.at_level(logging.INFO):
        split = split_rows(data, 1, 0)
    assert sorted([*split.train, *split.calibration]) == [0, 1, 5]
    assert "dropped 1 training rows that are also in the test set and 2" in caplog.text


def test_nothing_is_logged_where_nothing_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        split_rows(samples(["x", "y", "z"], [0, 1, 0], [False, False, True]), 1, 0)
    assert not caplog.text


def test_images_are_compared_by_their_bytes() -> None:
    data = Samples(
        ("a", "b"),
        EncodedImages([b"one", b"two", b"one", b"three"], "d"),
        np.array([0, 1, 0, 1]),
        np.array([False, False, True, False]),
    )
    assert sorted(np.concatenate(split_rows(data, 1, 0)[:2])) == [1, 3]


def test_a_tenth_of_every_class_becomes_the_test_set() -> None:
    labels = [0] * 40 + [1] * 20 + [0] * 40
    data = samples([str(i) for i in range(100)], labels)
    tests = [split_rows(data, None, seed).test for seed in range(3)]
    for test in tests:
        assert np.bincount(data.labels[test]).tolist() == [8, 2]
    assert len({tuple(test) for test in tests}) == 3


def test_a_class_of_one_row_cannot_be_held_out() -> None:
    with pytest.raises(
        ValueError, match=r"class 'b' has too few rows \(1\); it needs at least one to train"
    ):
        split_rows(samples(["x", "y", "z", "z"], [0, 0, 1, 1]), None, 0)


@pytest.mark.parametrize(
    ("rows", "size"), [(2, 1), (4, 1), (9, 1), (10, 2), (24_999, 4999), (30_000, 5000)]
)
def test_the_calibration_set_is_5000_rows_or_a_fifth(rows: int, size: int) -> None:
    texts = [str(row) for row in range(rows + 1)]
    data = samples(texts, [0] * (rows + 1), [False] * rows + [True])
    assert len(split_rows(data, None, 0).calibration) == size


def test_the_calibration_rows_are_those_of_the_shipped_bundle() -> None:
    data = samples([str(i) for i in range(12)], [0] * 12, [False] * 8 + [True] * 4)
    order = np.random.default_rng(5).permutation(8)
    assert split_rows(data, 3, 5).calibration.tolist() == sorted(order[:3].tolist())


@pytest.mark.parametrize("size", [0, 8, 9])
def test_the_calibration_set_leaves_training_rows(size: int) -> None:
    data = samples([str(i) for i in range(12)], [0] * 12, [False] * 8 + [True] * 4)
    with pytest.raises(ValueError, match=f"calibration size {size} must lie between 1 and 7"):
        split_rows(data, size, 0)


def test_a_training_set_that_is_the_test_set_is_refused() -> None:
    data = samples(["x", "y", "x", "y"], [0, 1, 0, 1], [False, False, True, True])
    with pytest.raises(ValueError, match="0 training rows are left after dropping 2 duplicates"):
        split_rows(data, None, 0)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["b", "a", "b"], ("a", "b")),
        (["1", "01", "2"], ("01", "1", "2")),
    ],
)
def test_classes_are_sorted(names: list[str], classes: tuple[str, ...]) -> None:
    found, labels, _ = index_labels(names, None, "d")
    assert found == classes
    assert [found[label] for label in labels] == names


@pytest.mark.parametrize(
    ("is_test", "message"),
    [
        ([False, False, True, True], "test rows of d lack the class 'b'"),
        ([True, True, False, False], "training rows of d lack the class 'b'"),
    ],
)
def test_classes_of_one_part_alone_are_named(is_test: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index_labels(["a", "b", "a", "a"], np.array(is_test), "d")


def test_of_many_lacking_classes_a_few_are_named() -> None:
    names = [*"abcdefgh", "a"]
    with pytest.raises(ValueError, match="'b', 'c', 'd', 'e', 'f' and 2 more; add rows"):
        index_labels(names, np.arange(9) == 8, "d")


def test_a_single_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"d has 1 class \('a'\); a classifier needs two"):
        index_labels(["a", "a"], None, "d")


@st.composite
def data_sets_with_tests(draw: st.DrawFn) -> Samples:
    """Draw texts with duplicates, of which at least six for training and six for test differ."""
    data = draw(data_sets())
    assert isinstance(data.inputs, list) and data.is_test is not None
    new = [f"own {i}" for i in range(12)]
    return samples(
        [*data.inputs, *new],
        [*data.labels.tolist(), *[0, 1] * 6],
        [*data.is_test.tolist(), *[False] * 6, *[True] * 6],
    )


@given(
    data_sets_with_tests(),
    st.sampled_from(["train", "test"]),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(0, 3),
    st.booleans(),
)
def test_rows_held_out_of_the_test_set_share_no_input_with_others(
    data: Samples,
    source: CalibrationSource,
    size: int,
    certified: int,
    seed: int,
    ours: bool,
) -> None:
    if ours:
        data = data._replace(is_test=None)
        certified, size = min(certified, 1), 1
    usual = split_rows(data, 1, seed)
    hypothesis.assume(size + certified < len(set(data.inputs[row] for row in usual.test)))
    split = split_rows(data, size, seed, calibration_from=source, certification_size=certified)
    assert (len(split.calibration), len(split.certification)) == (size, certified)
    parts = [{data.inputs[row] for row in part} for part in split]
    assert sum(map(len, parts)) == len(set().union(*parts))
    trainable = sorted([*usual.train, *usual.calibration])
    if source == "test":
        assert split.train.tolist() == trainable
        held_out = [*split.calibration, *split.certification, *split.test]
        assert sorted(held_out) == usual.test.tolist()
    else:
        assert sorted([*split.train, *split.calibration]) == trainable
        assert sorted([*split.certification, *split.test]) == usual.test.tolist()
    for part in split:
        assert part.tolist() == sorted(part)


@given(data_sets_with_tests(), st.integers(0, 3))
def test_certification_rows_do_not_depend_on_the_calibration(data: Samples, seed: int) -> None:
    train, test, more = (
        split_rows(data, size, seed, calibration_from=source, certification_size=2)
        for size, source in CALIBRATIONS
    )
    assert train.certification.tolist() == test.certification.tolist()
    assert more.certification.tolist() == test.certification.tolist()
    assert set(test.calibration) <= set(more.calibration)


def test_a_test_set_is_split_once_into_rows_to_fit_to_certify_and_report() -> None:
    data = samples([str(i) for i in range(110)], [0] * 110, [False] * 10 + [True] * 100)
    splits = [
        split_rows(data, 25, seed, calibration_from="test", certification_size=25)
        for seed in (0, 0, 1)
    ]
    assert [len(part) for part in splits[0]] == [10, 25, 25, 50]
    assert splits[0].test.tolist() == splits[1].test.tolist() != splits[2].test.tolist()
    assert splits[0].calibration.tolist() != splits[2].calibration.tolist()


def test_calibration_rows_of_the_test_set_are_a_fifth_of_it_by_default() -> None:
    data = samples([str(i) for i in range(60)], [0] * 60, [False] * 10 + [True] * 50)
    split = split_rows(data, None, 0, calibration_from="test", certification_size=20)
    assert [len(part) for part in split] == [10, 6, 20, 24]


def test_test_rows_that_repeat_stay_test_rows() -> None:
    texts = ["t", "u", "a", "a", "b", "c", "c ", "d"]
    data = samples(texts, [0] * 8, [False] * 2 + [True] * 6)
    for seed in range(5):
        split = split_rows(data, 1, seed, calibration_from="test", certification_size=1)
        assert split.test.tolist() == [2, 3, 5, 6]


@pytest.mark.parametrize(
    ("source", "size", "certified", "told"),
    [
        ("train", 2, 5, "5 rows cannot be held out of 5 test rows, of which 5 occur once"),
        ("test", 2, 3, r"3 \+ 2 rows cannot be held out of 5 .*; hold out at most 4"),
        ("test", None, 9, r"9 \+ 1 rows cannot be held out of 5 test rows"),
    ],
)
def test_rows_to_report_on_must_be_left(
    source: CalibrationSource, size: int | None, certified: int, told: str
) -> None:
    data = samples([str(i) for i in range(12)], [0] * 12, [False] * 7 + [True] * 5)
    with pytest.raises(ValueError, match=told):
        split_rows(data, size, 0, calibration_from=source, certification_size=certified)


# Rows of every class


@pytest.mark.parametrize("source", ["train", "test"])
def test_no_class_is_missing_among_the_calibration_rows(source: CalibrationSource) -> None:
    labels = [0] * 950 + [1] * 47 + [2] * 2 + [3]
    texts, marks = [str(i) for i in range(2000)], [False] * 1000 + [True] * 1000
    data = samples(texts, labels * 2, marks)._replace(classes=tuple("abcd"))
    for seed in range(5):
        split = split_rows(data, 200, seed, calibration_from=source, certification_size=100)
        counts = np.bincount(data.labels[split.calibration], minlength=4)
        assert counts[0] == pytest.approx(190, abs=1.5) and counts[1] == pytest.approx(9, abs=1.5)
        # Of two rows one is held out, and a single one stays where it was.
        left = split.train if source == "train" else split.test
        assert counts[3] == 0 and 3 in data.labels[left]
        certified = np.bincount(data.labels[split.certification], minlength=4)
        assert certified[1] >= 4 and certified[2] == 1
        assert counts[2] == (source == "train")


def test_rows_of_runs_before_are_found_again() -> None:
    data = samples([str(i) for i in range(60)], [0] * 50 + [1] * 10, [False] * 60)
    order = np.random.default_rng(3).permutation(54)
    before = split_rows(data._replace(is_test=None), 20, 3, stratified=False)
    kept = np.setdiff1d(np.arange(60), before.test)
    assert before.calibration.tolist() == kept[np.sort(order[:20])].tolist()
