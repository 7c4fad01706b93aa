"""What commands that make runs read from flags and files: settings, exits, tokenizers, images."""

import argparse
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from models.bundle import TOKENIZER
from models.networks.families import Network
from models.networks.imagenet_resnet import BLOCKS
from models.preprocess import IMAGENET_MEAN, IMAGENET_STD

MAX_TOKENS = 128
TORCHVISION = {f"resnet{depth}": depth for depth in BLOCKS}
IMAGENET_SIZE = 224


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object of settings.

    Raises:
        ValueError: If the file holds none.
    """
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no JSON object; give the settings by their names")
    return settings


def parse_exits(text: str) -> list[int]:
    """Numbers of blocks or layers, separated by commas.

    Raises:
        ValueError: If they are none.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"exits {text!r} are not numbers of blocks or layers such as 9,18"
        ) from error


def read_tokenizer(path: Path | None) -> str:
    """A tokenizer's JSON, from its file or the folder that it lies in.

    Raises:
        ValueError: If there is none.
    """
    if path is None:
        raise ValueError("a network that reads texts needs --tokenizer, a tokenizer.json")
    file = path / TOKENIZER if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file} does not exist; --tokenizer takes a tokenizer.json or its folder")
    return file.read_text()


def input_of(args: argparse.Namespace, network: Network, tokenizer: str) -> dict[str, Any]:
    """How texts are cut for a network of our own encoder.

    Raises:
        ValueError: If --max-tokens or the tokenizer does not fit the network.
    """
    check_vocabulary(tokenizer, network.settings["vocab_size"])
    most = network.settings["max_position_embeddings"]
    return {"max_tokens": max_tokens_of(args, "this network", most), "pad_id": 0}


def max_tokens_of(args: argparse.Namespace, network: str, most: int) -> int:
    """Where texts are cut: at --max-tokens, unless given at 128 or what the network takes.

    Raises:
        ValueError: If the network does not take so many.
    """
    wanted: int = min(MAX_TOKENS, most) if args.max_tokens is None else args.max_tokens
    if not 2 < wanted <= most:
        raise ValueError(f"--max-tokens is {wanted}; {network} takes 3 to {most}")
    return wanted


def check_vocabulary(tokenizer: str, vocab_size: int) -> None:
    """Refuse a tokenizer's JSON that has tokens which a network does not know.

    Raises:
        ValueError: If it has, or is none.
    """
    try:
        tokens = Tokenizer.from_str(tokenizer).get_vocab_size()
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"the tokenizer.json is no tokenizer: {error}") from error
    if tokens > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokens} tokens, the network a vocab_size of {vocab_size}; give "
            f"the tokenizer that belongs to it"
        )


def images() -> dict[str, Any]:
    """How images are normalised unless told otherwise."""
    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
