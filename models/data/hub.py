"""Datasets known by name, fetched from the Hugging Face Hub."""

from typing import Any, Literal, NamedTuple

import numpy as np

from models.data.images import EncodedImages
from models.data.samples import Samples

PROBE_SECONDS = 5.0
LOCAL_FORMS = {
    "image": "a folder of images, train/CLASS/* and test/CLASS/*",
    "text": "a folder of tables, train.csv and test.csv (or .tsv, .jsonl)",
}


class HubDataset(NamedTuple):
    """Where a dataset lies on the Hub, and what its columns and test set are called there."""

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
    # What is called test there has no labels.
    "sst2": HubDataset("text", "stanfordnlp/sst2", "sentence", "label", "validation"),
    "ag_news": HubDataset("text", "fancyzhx/ag_news", "text", "label", "test"),
}


def read_hub_dataset(name: str) -> Samples:
    """Fetch one of `HUB_DATASETS`, or read the copy that an earlier call left in the cache.

    Raises:
        ValueError: If neither can be had.
    """
    known = HUB_DATASETS[name]
    try:
        return _read(known, _fetch(known.repository))
    except Exception as error:  # of network, disk, or a repository that is no longer as we know it
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name} cannot be had from the Hugging Face Hub ({known.repository}: {reason}); give "
            f"it as {LOCAL_FORMS[known.task]}"
        ) from error


def _fetch(repository: str) -> Any:
    import datasets  # type: ignore[import-untyped]  # takes a second, which other datasets need not wait

    was_offline = datasets.config.HF_HUB_OFFLINE
    # Unless told that it is offline, the library tries for half a minute before it looks into its
    # cache.
    datasets.config.HF_HUB_OFFLINE = was_offline or not _hub_answers(repository)
    try:
        return datasets.load_dataset(repository)
    except ConnectionError as error:
        raise ConnectionError("the Hub does not answer and the cache holds no copy") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline


def _hub_answers(repository: str) -> bool:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(repository, timeout=PROBE_SECONDS)
    except HfHubHTTPError:
        return True  # though with a refusal, which the library will tell
    except Exception:  # the type differs with the HTTP client
        return False
    return True


def _read(known: HubDataset, splits: Any) -> Samples:
    parts = [splits["train"], splits[known.test_split]]
    labels = np.array([label for part in parts for label in part[known.label_column]], np.int64)
    is_test = np.arange(len(labels)) >= len(parts[0])
    classes = tuple(parts[0].features[known.label_column].names)
    if known.task == "text":
        texts = [text for part in parts for text in part[known.input_column]]
        return Samples(classes, texts, labels, is_test)
    images = [image for part in parts for image in _encoded(part, known.input_column)]
    return Samples(classes, EncodedImages(images, known.repository), labels, is_test)


def _encoded(part: Any, column: str) -> list[bytes]:
    from datasets import Image

    return [image["bytes"] for image in part.cast_column(column, Image(decode=False))[column]]
