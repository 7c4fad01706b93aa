"""Recognise the usual names of training and test splits, in any case."""

import re
from collections.abc import Iterable, Sequence

TRAIN_NAMES = ("train", "training")
# The first that exists is the test set.
TEST_NAMES = ("test", "testing", "val", "validation", "valid", "dev", "eval")
SHARD = re.compile(r"(.+)-\d+-of-\d+")  # train-00000-of-00002, as the Hugging Face hub cuts tables


def is_split_name(name: str) -> bool:
    """Whether a name is that of a split, and probably not that of a class."""
    return name.strip().casefold() in (*TRAIN_NAMES, *TEST_NAMES)


def name_of_split(stem: str) -> str:
    """Return the name of the split that a file's name without suffixes gives, in lower case."""
    shard = SHARD.fullmatch(stem)
    return (shard[1] if shard else stem).casefold()


def find_split(wanted: Sequence[str], found: Iterable[str]) -> list[str]:
    """Return the names of the first wanted split that exists, as they are spelled.

    Args:
        wanted: Names in lower case, the preferred one first.
        found: Names that exist.
    """
    spelled: dict[str, list[str]] = {}
    for name in found:
        spelled.setdefault(name_of_split(name), []).append(name)
    return next((sorted(spelled[name]) for name in wanted if name in spelled), [])
