import io
import json
import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import models.data.load
from models.data.dataset import DataConfig
from models.data.image_archive import read_image_archive
from models.data.load import NAMES, load_dataset
from models.data.samples import split_rows

SHARED = Path(__file__).resolve().parents[2].parent / "shared/data"


def image(red: int, size: int = 4) -> Image.Image:
    """Make an image of one colour, which differs from the others."""
    return Image.new("RGB", (size, size), (red, 255 - red, 7))


def write_archive(path: Path) -> Path:
    """Twelve images, the last four for testing; image i has red i and label i % 3."""
    blobs = []
    for i in range(12):
        stream = io.BytesIO()
        image(i).save(stream, "PNG")
        blobs.append(stream.getvalue())
    np.savez(
        path,
        blob=np.frombuffer(b"".join(blobs), np.uint8),
        off=np.cumsum([0, *map(len, blobs)]),
        y=np.arange(12) % 3,
        test=np.arange(12) >= 8,
        allow_pickle=False,
    )
    return path


def write_folder(path: Path, sizes: tuple[int, ...] = (4,)) -> Path:
    """Four images for each of two classes and parts; label 0 has even reds."""
    for red in range(16):
        part, name = ("train", "test")[red // 8], ("ape", "bee")[red % 2]
        (path / part / name).mkdir(parents=True, exist_ok=True)
        image(red, sizes[red % len(sizes)]).save(path / part / name / f"{red:02}.png")
    return path


def reds(images: np.ndarray) -> list[int]:
    return [int(value) for value in images[:, 0, 0, 0]]


def test_an_archive_gives_disjoint_splits_with_the_labels_of_its_images(tmp_path: Path) -> None:
    data = load_dataset(DataConfig(str(write_archive(tmp_path / "d.npz")), calibration_size=3))
    assert data.task == "image"
    assert data.classes[:2] == ("airplane", "automobile")
    assert (len(data.train.labels), len(data.calibration.labels)) == (5, 3)
    assert sorted(reds(data.train.inputs) + reds(data.calibration.inputs)) == list(range(8))
    assert reds(data.test.inputs) == [8, 9, 10, 11]
    for split in (data.train, data.calibration, data.test):
        assert split.labels.tolist() == [red % 3 for red in reds(split.inputs)]
        assert split.inputs.shape[1:] == (4, 4, 3)
        assert (split.inputs.dtype, split.labels.dtype) == (np.uint8, np.int64)


def test_the_test_set_of_an_archive_is_split_further(tmp_path: Path) -> None:
    path = str(write_archive(tmp_path / "d.npz"))
    data = load_dataset(
        DataConfig(path, calibration_size=1, calibration_from="test", certification_size=2)
    )
    assert reds(data.train.inputs) == list(range(8))
    assert data.certification is not None
    held_out = (data.calibration, data.certification, data.test)
    assert [len(split.labels) for split in held_out] == [1, 2, 1]
    shown = [red for split in held_out for red in reds(split.inputs)]
    assert sorted(shown) == [8, 9, 10, 11]
    for split in held_out:
        assert split.labels.tolist() == [red % 3 for red in reds(split.inputs)]


def test_nothing_is_certified_on_by_default(tmp_path: Path) -> None:
    assert load_dataset(DataConfig(str(write_archive(tmp_path / "d.npz")))).certification is None


def test_labels_of_every_split_are_mapped(tmp_path: Path) -> None:
    path = str(write_archive(tmp_path / "d.npz"))
    for certified in (0, 2):
        data = load_dataset(DataConfig(path, calibration_size=3, certification_size=certified))
        mapped = data.map_labels(("a", "b", "c"), lambda labels: 2 - labels)
        assert (mapped.task, mapped.classes) == ("image", ("a", "b", "c"))
        for before, after in zip(data[2:], mapped[2:], strict=True):
            assert (before is None) == (after is None) == (before is data[-1] and not certified)
            if before is not None:
                assert after.inputs is before.inputs
                assert after.labels.tolist() == (2 - before.labels).tolist()


def test_the_seed_picks_the_calibration_set(tmp_path: Path) -> None:
    path = str(write_archive(tmp_path / "d.npz"))
    picks = [
        reds(load_dataset(DataConfig(path, calibration_size=3, seed=seed)).calibration.inputs)
        for seed in (5, 5, 6, 7, 8)
    ]
    assert picks[0] == picks[1]
    assert len({tuple(pick) for pick in picks}) > 1


@pytest.mark.parametrize("lazily", [False, True])
@pytest.mark.parametrize(("sizes", "image_size"), [((4,), None), ((4,), 6), ((4, 9), 6)])
def test_a_folder_gives_the_same_images_decoded_now_or_later(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lazily: bool,
    sizes: tuple[int, ...],
    image_size: int | None,
) -> None:
    if lazily:
        monkeypatch.setattr(models.data.load, "IN_MEMORY_BYTES", 16 * 4 * 4 * 3 - 1)
    path = str(write_folder(tmp_path, sizes))
    data = load_dataset(DataConfig(path, image_size=image_size))
    side = image_size or 4
    assert data.classes == ("ape", "bee")
    assert reds(data.test.inputs[:]) == [8, 10, 12, 14, 9, 11, 13, 15]
    for split in (data.train, data.calibration, data.test):
        assert isinstance(split.inputs, np.ndarray) != lazily
        assert len(split.inputs) == len(split.labels)
        assert split.inputs.shape == (len(split.labels), side, side, 3)
        assert [red % 2 for red in reds(split.inputs[:])] == split.labels.tolist()
        last_first = np.arange(len(split.labels))[::-1]
        assert reds(split.inputs[last_first]) == reds(split.inputs[:])[::-1]


def test_images_of_several_sizes_need_an_image_size(tmp_path: Path) -> None:
    path = str(write_folder(tmp_path, (4, 5)))
    with pytest.raises(ValueError, match=r"5x5, .* 4x4; give --image-size"):
        load_dataset(DataConfig(path))


def test_an_image_of_both_folders_is_not_trained_on(tmp_path: Path) -> None:
    path = write_folder(tmp_path)
    image(8).save(path / "train/bee/copy.png")
    data = load_dataset(DataConfig(str(path)))
    assert len(data.train.labels) + len(data.calibration.labels) == 8
    assert len(data.test.labels) == 8


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path)
    file = path / "train/ape/02.png"
    file.write_bytes(file.read_bytes()[:45])
    with pytest.raises(ValueError, match=r"train/ape/02\.png cannot be used"):
        load_dataset(DataConfig(str(path)))


def write_texts(folder: Path) -> Path:
    """Write ten texts for training and two for test."""
    folder.mkdir()
    for name, rows in (("train", range(10)), ("test", range(10, 12))):
        lines = [json.dumps({"review": f"text {i}", "stars": i % 2 + 4}) for i in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def test_texts_are_split_like_images(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "reviews")
    config = DataConfig(str(path), text_column="review", label_column="stars")
    data = load_dataset(config)
    assert (data.task, data.classes) == ("text", ("4", "5"))
    assert [len(split.inputs) for split in data[2:5]] == [8, 2, 2]
    assert data.test.inputs == ["text 10", "text 11"]
    for split in (data.train, data.calibration, data.test):
        assert split.labels.tolist() == [int(text.split()[1]) % 2 for text in split.inputs]
    alone = load_dataset(DataConfig(str(path / "train.jsonl"), "review", "stars"))
    assert [len(split.inputs) for split in alone[2:5]] == [7, 1, 2]


def test_texts_have_no_image_size(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "reviews")
    with pytest.raises(ValueError, match=r"image_size is 32, but .*reviews holds texts; leave it"):
        load_dataset(DataConfig(str(path), "review", "stars", image_size=32))


def test_a_folder_of_images_may_hold_tables_too(tmp_path: Path) -> None:
    path = write_folder(tmp_path)
    (path / "train.csv").write_text("file,label\n")
    assert load_dataset(DataConfig(str(path))).task == "image"


@pytest.mark.parametrize("name", ["missing", "missing.npz", "cifar-10", "./cifar10"])
def test_what_is_neither_path_nor_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"dataset {name} is neither .* names {', '.join(NAMES)}"):
        load_dataset(DataConfig(name))


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"d\.xlsx has an unknown format; give an \.npz, \.csv"):
        load_dataset(DataConfig(str(tmp_path / "d.xlsx")))


def test_damaged_images_may_be_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_folder(tmp_path)
    for name in ("train/ape/02.png", "test/bee/09.png"):
        (path / name).write_bytes((path / name).read_bytes()[:45])
    with pytest.raises(
        ValueError, match=r"2 images cannot be used: .*02\.png .*09\.png .*--skip-da"
    ):
        load_dataset(DataConfig(str(path)))
    with caplog.at_level(logging.INFO, "models"):
        data = load_dataset(DataConfig(str(path), skip_damaged=True))
    assert sum(len(split.labels) for split in data[2:5]) == 14
    assert "passed over 2 damaged images: " in caplog.text


def test_a_class_of_damaged_images_alone_is_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path)
    for file in path.glob("*/ape/*"):
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match="all images of the class 'ape' are damaged"):
        load_dataset(DataConfig(str(path), skip_damaged=True))


def test_imagenet_is_given_as_a_folder() -> None:
    with pytest.raises(ValueError, match=r"imagenet cannot be fetched.* give the folder"):
        load_dataset(DataConfig("imagenet"))


def test_a_path_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "cifar10")
    monkeypatch.chdir(tmp_path)
    assert load_dataset(DataConfig("cifar10")).classes == ("ape", "bee")


def test_names_of_the_hub_are_looked_up_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = models.data.load.Samples(("a", "b"), ["x", "y", "z"], np.array([0, 1, 0]), None)
    found = found._replace(is_test=np.array([False, False, True]))
    monkeypatch.setattr(models.data.load, "read_hub_dataset", {"sst2": found}.__getitem__)
    assert load_dataset(DataConfig("sst2")).test.inputs == ["z"]


def test_shapes_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[DataConfig] = []
    monkeypatch.setattr(
        "models.data.load.load_shapes", lambda config: drawn.append(config) or "shapes"
    )
    config = DataConfig("shapes", seed=3)
    assert load_dataset(config) == "shapes"
    assert drawn == [config]


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("calibration_size", 0, 1),
        ("calibration_size", -5, 1),
        ("certification_size", -1, 0),
        ("image_size", 0, 1),
        ("seed", -1, 0),
    ],
)
def test_impossible_settings_are_refused(name: str, value: int, least: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be {least} or more"):
        DataConfig("cifar10", **{name: value})


def test_an_unknown_source_of_calibration_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="calibration_from is 'val'; use train or test"):
        DataConfig("cifar10", calibration_from="val")  # type: ignore[arg-type]


def test_a_calibration_set_as_large_as_the_training_set_is_refused(tmp_path: Path) -> None:
    path = str(write_archive(tmp_path / "d.npz"))
    with pytest.raises(ValueError, match="calibration size 8 must lie between 1 and 7"):
        load_dataset(DataConfig(path, calibration_size=8))


def test_a_config_survives_json() -> None:
    config = DataConfig(
        "d", "sentence", calibration_size=7, calibration_from="test", image_size=9, seed=1
    )
    assert DataConfig(**json.loads(json.dumps(asdict(config)))) == config


def shared(name: str) -> str:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    return str(path)


def test_cifar10_has_no_repeats_and_keeps_its_calibration_set() -> None:
    split = split_rows(read_image_archive(Path(shared("cifar10_jpegs.npz"))), None, 0)
    assert [len(part) for part in split] == [45_000, 5000, 0, 10_000]
    with np.load(shared("cifar10_jpegs.npz")) as arrays:
        train = np.flatnonzero(~arrays["test"])
    shipped = np.sort(np.random.default_rng(0).permutation(50_000)[:5000])
    np.testing.assert_array_equal(split.calibration, train[shipped])


def test_the_test_images_of_cifar10_are_split_for_a_network_that_has_seen_all_others() -> None:
    samples = read_image_archive(Path(shared("cifar10_jpegs.npz")))
    split = split_rows(samples, 2500, 0, calibration_from="test", certification_size=2500)
    assert [len(part) for part in split] == [50_000, 2500, 2500, 5000]


def test_sst2_is_read_whole() -> None:
    data = load_dataset(DataConfig(shared("sst2"), text_column="sentence"))
    assert data.classes == ("0", "1")
    repeats = 293
    assert len(data.train.labels) + len(data.calibration.labels) == 60_614 - repeats
    assert len(data.test.labels) == 872


def test_ag_news_is_read_whole() -> None:
    data = load_dataset(DataConfig(shared("ag_news"), text_column="0", label_column="1"))
    assert data.classes == ("Business", "Sci/Tech", "Sports", "World")
    repeats, in_test = 11, 10
    assert len(data.train.labels) + len(data.calibration.labels) == 10_001 - repeats - in_test
    assert len(data.test.labels) == 7600
    assert not set(data.train.inputs) & set(data.test.inputs)


def test_a_table_with_other_columns_names_them_and_the_flags() -> None:
    with pytest.raises(
        ValueError,
        match=r"train.tsv has the columns 'sentence', 'label', .*--text-column and --lab",
    ):
        load_dataset(DataConfig(shared("sst2")))
