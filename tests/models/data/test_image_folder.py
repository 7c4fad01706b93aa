from pathlib import Path

import pytest
from PIL import Image

from models.data.image_folder import read_image_folder


def save(path: Path, red: int = 0, size: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (red, 255 - red, 7)).save(path)


def write_folder(path: Path, parts: tuple[str, ...] = ("train", "test")) -> Path:
    """Two images for each of three classes and part; all differ."""
    for red, part in enumerate(parts):
        for label, name in enumerate(("cat", "ape", "dog")):
            for i in range(2):
                save(path / part / name / f"{i}.png", 100 * red + 10 * label + i)
    return path


def test_classes_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    found = read_image_folder(write_folder(tmp_path))
    assert found.classes == ("ape", "cat", "dog")
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert found.is_test is not None
    assert found.is_test.tolist() == [False] * 6 + [True] * 6
    assert found.inputs.items[:3] == [
        str(tmp_path / "train" / name) for name in ("ape/0.png", "ape/1.png", "cat/0.png")
    ]


@pytest.mark.parametrize(
    ("parts", "used"),
    [
        (("train", "val"), "val"),
        (("train", "validation"), "validation"),
        (("train", "test", "val"), "test"),
        (("train", "validation", "test", "val"), "test"),
        (("Train", "Test"), "Test"),
        (("TRAINING", "valid"), "valid"),
        (("training", "DEV"), "DEV"),
    ],
)
def test_the_test_set_may_be_called_validation(
    tmp_path: Path, parts: tuple[str, ...], used: str
) -> None:
    found = read_image_folder(write_folder(tmp_path, parts))
    assert found.is_test is not None
    tests = [item for item, test in zip(found.inputs.items, found.is_test, strict=True) if test]
    assert {Path(item).parts[-3] for item in tests} == {used}


def test_class_folders_alone_leave_the_test_set_to_us(tmp_path: Path) -> None:
    found = read_image_folder(write_folder(tmp_path) / "train")
    assert found.is_test is None
    assert len(found.labels) == 6


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train", "test"):
        save(tmp_path / name / "0.png")
    assert read_image_folder(tmp_path).classes == ("bus", "test", "train")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("test", "val"), "the folders test, val of .* look like splits"),
        (("fold1", "fold2"), r"fold1, fold2 of .* same sub-folders \(ape, cat, dog\); call them"),
        (("train", "Train"), "holds both Train and train; remove one"),
    ],
)
def test_classes_that_look_like_splits_are_refused(
    tmp_path: Path, parts: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_image_folder(write_folder(tmp_path, parts))


def test_splits_without_class_folders_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "train/0.png")
    save(tmp_path / "test/0.png")
    with pytest.raises(ValueError, match="'test', 'train', which are names of splits; images need"):
        read_image_folder(tmp_path)


def test_what_is_passed_over_is_told(tmp_path: Path) -> None:
    path = write_folder(tmp_path, ("train", "test", "val"))
    (path / "train/cat/notes.txt").write_text("no image")
    (path / "train/cat/more.TXT").write_text("no image")
    (path / "test/dog/0.mp4").write_bytes(b"")
    (path / "LICENSE").write_text("")
    notes = read_image_folder(path).notes
    assert f"passed over other folders of {path}: val" in notes
    assert any(
        "passed over 1 files" in note and "1 of no suffix; LICENSE" in note for note in notes
    )
    assert any("3 files" in note and "2 of .txt, 1 of .mp4" in note for note in notes)


def test_integer_classes_are_in_the_order_of_their_values(tmp_path: Path) -> None:
    for name in ("10", "2", "0"):
        save(tmp_path / name / "0.png")
    assert read_image_folder(tmp_path).classes == ("0", "2", "10")


def test_other_files_hidden_ones_and_folders_in_folders(tmp_path: Path) -> None:
    path = write_folder(tmp_path)
    (path / "train/cat/notes.txt").write_text("no image")
    (path / "train/README").write_text("no class")
    (path / "train/dog/._0.png").write_text("what a Mac leaves")
    save(path / "train/.ipynb_checkpoints/0.png")
    save(path / "train/dog/.thumbnails/0.png")
    save(path / "train/dog/more/GREY.JPEG")
    found = read_image_folder(path)
    assert found.classes == ("ape", "cat", "dog")
    assert len(found.labels) == 13
    assert str(path / "train/dog/more/GREY.JPEG") in found.inputs.items


@pytest.mark.parametrize("names", [(), ("cat",)])
def test_a_folder_without_two_classes_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "train").mkdir()
    for name in names:
        save(tmp_path / "train" / name / "0.png")
    with pytest.raises(ValueError, match=f"train holds {len(names)} class folders; images need"):
        read_image_folder(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 0 class folders"):
        read_image_folder(tmp_path)


def test_a_class_folder_without_images_is_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path)
    (path / "train/cow").mkdir()
    with pytest.raises(ValueError, match=r"train/cow holds no images \(\.png, \.jpg"):
        read_image_folder(path)


def test_a_folder_without_a_test_folder_says_what_to_do(tmp_path: Path) -> None:
    path = write_folder(tmp_path, ("train", "later"))
    with pytest.raises(
        ValueError,
        match=r"train but none of test, testing, val, .*; add one, or give .*/train to hold",
    ):
        read_image_folder(path)


@pytest.mark.parametrize(("part", "message"), [("test", "training"), ("train", "test")])
def test_a_class_of_one_part_alone_is_named(tmp_path: Path, part: str, message: str) -> None:
    path = write_folder(tmp_path)
    save(path / part / "cow/0.png")
    with pytest.raises(ValueError, match=f"the {message} rows of .* lack the class 'cow'"):
        read_image_folder(path)
