import time
from typing import Any, NamedTuple

import datasets
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from models.data.hub import HUB_DATASETS, read_hub_dataset
from models.data.images import LazyImages

Splits = dict[str, dict[str, list[Any]]]


class Hub(NamedTuple):
    """A fake Hub whose responses the test sets."""

    splits: dict[str, datasets.DatasetDict]
    offline: list[bool]


def images(start: int, count: int, mode: str = "RGB") -> list[Image.Image]:
    return [Image.new("RGB", (6, 6), (start + i,) * 3).convert(mode) for i in range(count)]


def dataset_dict(columns: dict[str, Any], splits: Splits) -> datasets.DatasetDict:
    features = datasets.Features(columns)
    return datasets.DatasetDict(
        {name: datasets.Dataset.from_dict(split, features) for name, split in splits.items()}
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub({}, [])

    def load_dataset(repository: str) -> datasets.DatasetDict:
        hub.offline.append(datasets.config.HF_HUB_OFFLINE)
        if repository not in hub.splits:
            raise ConnectionError(f"Couldn't reach '{repository}' on the Hub (LongName)")
        return hub.splits[repository]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    answer_with(monkeypatch, None)
    return hub


def answer_with(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    def dataset_info(self: Any, repository: str, timeout: float) -> None:
        assert timeout <= 10
        if error is not None:
            raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)


PICTURE_SETS = [
    ("cifar10", "uoft-cs/cifar10", "img", "label", "test", "RGB"),
    ("cifar100", "uoft-cs/cifar100", "img", "fine_label", "test", "RGB"),
    ("fashion-mnist", "zalando-datasets/fashion_mnist", "image", "label", "test", "L"),
    ("tiny-imagenet", "zh-plus/tiny-imagenet", "image", "label", "valid", "RGB"),
]


@pytest.mark.parametrize(
    ("name", "repository", "column", "label_column", "test", "mode"), PICTURE_SETS
)
def test_images_come_as_they_lie_on_the_hub(
    hub: Hub, name: str, repository: str, column: str, label_column: str, test: str, mode: str
) -> None:
    columns = {
        column: datasets.Image(),
        "coarse_label": datasets.ClassLabel(names=["thing"]),
        label_column: datasets.ClassLabel(names=["b", "a"]),
    }
    hub.splits[repository] = dataset_dict(
        columns,
        {
            "train": {
                column: images(0, 3, mode),
                "coarse_label": [0] * 3,
                label_column: [0, 1, 1],
            },
            test: {column: images(9, 2, mode), "coarse_label": [0] * 2, label_column: [1, 0]},
        },
    )
    found = read_hub_dataset(name)
    assert found.classes == ("b", "a")
    assert found.labels.tolist() == [0, 1, 1, 1, 0]
    assert found.is_test is not None
    assert found.is_test.tolist() == [False] * 3 + [True] * 2
    decoded = LazyImages(found.inputs, np.arange(5), 6, 6)[:]
    assert decoded.shape == (5, 6, 6, 3)
    assert decoded[:, 0, 0].tolist() == [[red] * 3 for red in (0, 1, 2, 9, 10)]


def test_sst2_is_tested_on_its_validation_set(hub: Hub) -> None:
    columns = {
        "idx": datasets.Value("int32"),
        "sentence": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["negative", "positive"]),
    }
    hub.splits["stanfordnlp/sst2"] = dataset_dict(
        columns,
        {
            "train": {"idx": [0, 1], "sentence": ["hide", "gem"], "label": [0, 1]},
            "validation": {"idx": [0], "sentence": ["charming"], "label": [1]},
            "test": {"idx": [0], "sentence": ["uneasy"], "label": [-1]},
        },
    )
    found = read_hub_dataset("sst2")
    assert found.classes == ("negative", "positive")
    assert found.inputs == ["hide", "gem", "charming"]
    assert found.labels.tolist() == [0, 1, 1]


def test_ag_news_comes_with_its_classes(hub: Hub) -> None:
    names = ["World", "Sports", "Business", "Sci/Tech"]
    columns = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    split = {"text": ["a", "b"], "label": [3, 0]}
    hub.splits["fancyzhx/ag_news"] = dataset_dict(columns, {"train": split, "test": split})
    found = read_hub_dataset("ag_news")
    assert found.classes == tuple(names)
    assert found.labels.tolist() == [3, 0, 3, 0]


@pytest.mark.parametrize(
    ("name", "remedy"), [("cifar10", "a folder of images, train/CLASS"), ("sst2", "train.csv")]
)
def test_without_the_hub_one_sentence_names_the_local_form(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str, remedy: str
) -> None:
    answer_with(monkeypatch, OSError("Name or service not known"))
    with pytest.raises(
        ValueError,
        match=f"dataset {name} is not available from the Hugging Face Hub "
        f".*{HUB_DATASETS[name].repository}: the Hub does not respond and the cache holds "
        f"no copy.; give it as .*{remedy}",
    ):
        read_hub_dataset(name)


def test_without_the_hub_the_cache_is_read_at_once(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])}
    split = {"text": ["a", "b"], "label": [0, 1]}
    hub.splits["fancyzhx/ag_news"] = dataset_dict(columns, {"train": split, "test": split})
    read_hub_dataset("ag_news")
    answer_with(monkeypatch, OSError("Name or service not known"))
    read_hub_dataset("ag_news")
    assert hub.offline == [False, True]
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_refusal_of_the_hub_is_left_to_the_library(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, HfHubHTTPError.__new__(HfHubHTTPError))
    with pytest.raises(ValueError, match="cifar10 is not available"):
        read_hub_dataset("cifar10")
    assert hub.offline == [False]


def test_a_repository_that_has_changed_is_one_sentence(hub: Hub) -> None:
    split = {"words": ["a"]}
    hub.splits["fancyzhx/ag_news"] = dataset_dict(
        {"words": datasets.Value("string")}, {"train": split, "test": split}
    )
    with pytest.raises(ValueError, match=r"ag_news is not available from .*label.*; give it as"):
        read_hub_dataset("ag_news")


def test_the_library_itself_fails_fast_when_it_is_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    answer_with(monkeypatch, OSError("Name or service not known"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    started = time.perf_counter()
    with pytest.raises(ValueError, match="the Hub does not respond and the cache holds no copy"):
        read_hub_dataset("cifar10")
    assert time.perf_counter() - started < 2
