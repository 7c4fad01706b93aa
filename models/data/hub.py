"""Fetch datasets that are known by name from the Hugging Face Hub."""

from typing import Any, Literal, NamedTuple

import numpy as np

from models.data.images import EncodedImages
from models.data.samples import Samples

PROBE_SECONDS = 5.0
LOCAL_FORMATS = {
    "image": "a folder of images, train/CLASS/* and test/CLASS/*",
    "text": "a folder of tables, train.csv and test.csv (or .tsv, .jsonl)",
}


class HubDataset(NamedTuple):
    """A dataset's repository on the Hub, and the names of its columns and test split there."""

    task: Literal["image", "text"]
    repository: str
    input_column: str
    label_column: str
    test_split: str


HUB_DATASETS = {
    "cifar10": HubDataset("image", "uoft-cs/cifar10", "img", "label", "test"),
    "cifar100": HubDataset("image", "uoft-cs/cifar100", "img", "fine_label", "test"),
    "fashion-mnist": HubDataset(
        "image", "zalando-datasets/fashion_mnist", "image", "label", "test"
    ),
    "tiny-imagenet": HubDataset("image", "zh-plus/tiny-imagenet", "image", "label", "valid"),
    # The split that the Hub calls `test` has no labels.
    "sst2": HubDataset("text", "stanfordnlp/sst2", "sentence", "label", "validation"),
    "ag_news": HubDataset("text", "fancyzhx/ag_news", "text", "label", "test"),
}


def read_hub_dataset(name: str) -> Samples:
    """Fetch one of `HUB_DATASETS`, or read its copy in the local cache.

    Raises:
        ValueError: If neither is available.
    """
    dataset = HUB_DATASETS[name]
    try:
        return _read(dataset, _fetch(dataset.repository))
    except Exception as error:  # network, disk, or a repository whose layout has changed
        reason = " ".join(str(error).split())
        raise ValueError(
            f"dataset {name} is not available from the Hugging Face Hub ({dataset.repository}: "
            f"{reason}); give it as {LOCAL_FORMATS[dataset.task]}"
        ) from error


def _fetch(repository: str) -> Any:
    # Imported here: it takes a second, and other datasets do not need it.
    import datasets  # type: ignore[import-untyped]

    was_offline = datasets.config.HF_HUB_OFFLINE
    # Without this setting the library retries for half a minute before it reads its cache.
    datasets.config.HF_HUB_OFFLINE = was_offline or not _hub_responds(repository)
    try:
        return datasets.load_dataset(repository)
    except ConnectionError as error:
        raise ConnectionError("the Hub does not respond and the cache holds no copy") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline


def _hub_responds(repository: str) -> bool:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(repository, timeout=PROBE_SECONDS)
    except HfHubHTTPError:
        return True  # a refusal is a response too; the library will report it
    except Exception:  # the type depends on the HTTP client
        return False
    return True


def _read(dataset: HubDataset, splits: Any) -> Samples:
    parts = [splits["train"], splits[dataset.test_split]]
    labels = np.array([label for part in parts for label in part[dataset.label_column]], np.int64)
    is_test = np.arange(len(labels)) >= len(parts[0])
    classes = tuple(parts[0].features[dataset.label_column].names)
    if dataset.task == "text":
        texts = [text for part in parts for text in part[dataset.input_column]]
        return Samples(classes, texts, labels, is_test)
    images = [image for part in parts for image in _encoded_images(part, dataset.input_column)]
    return Samples(classes, EncodedImages(images, dataset.repository), labels, is_test)


def _encoded_images(part: Any, column: str) -> list[bytes]:
    from datasets import Image

    return [image["bytes"] for image in part.cast_column(column, Image(decode=False))[column]]
