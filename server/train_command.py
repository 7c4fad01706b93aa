"""`eenet train`: a network of a family, from scratch or from plain weights."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from models.bundle import TOKENIZER
from models.data import Dataset, load_dataset
from models.families import Network
from models.imagenet_resnet import BLOCKS, load_torchvision_weights
from models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from models.resnet import load_plain_weights
from models.run import RunConfig, parse_heads
from models.train import EpochReport
from server.run_data import data_of
from server.training import NEW_ENCODER, device_of, run_training, train_config

MAX_TOKENS = 128
TORCHVISION = {f"resnet{depth}": depth for depth in BLOCKS}
IMAGENET_SIZE = 224


def train(args: argparse.Namespace) -> list[EpochReport]:
    """Train, or go on with, the run in `args.out`."""
    family = Network(args.arch).family
    if args.arch.startswith("attached"):
        raise ValueError(f"{args.arch} is made by `eenet attach`; train takes no such --arch")
    device_of(args.device)
    training = train_config(args, NEW_ENCODER if family.task == "text" else {})
    given = {**family.defaults, **settings_of(args)}
    tokenizer = read_tokenizer(args.tokenizer) if family.task == "text" else None
    if args.init is not None and not args.arch.removeprefix("resnet").isdigit():
        raise ValueError(f"--init takes the weights of a plain ResNet; {args.arch} is none")
    if args.init is not None and not args.init.is_file():
        raise ValueError(f"{args.init} does not exist; --init takes the weights of a plain ResNet")
    with torch.device("meta"):  # settings that make no network are told before data are read
        Network(args.arch, {**given, family.classes: 2}).build()
    size = IMAGENET_SIZE if args.arch in TORCHVISION else None
    data = data_of(args, seed=training.seed, image_size=size)
    dataset = load_dataset(data)
    if dataset.task != family.task:
        raise ValueError(
            f"{args.arch} is trained for the task {family.task}, {data.dataset} is a data set of "
            f"the task {dataset.task}"
        )
    network = Network(args.arch, {**given, family.classes: len(dataset.classes)})
    _check_size(network, dataset)
    torch.manual_seed(training.seed)
    model = network.build()
    if args.init is not None:
        load = load_torchvision_weights if args.arch in TORCHVISION else load_plain_weights
        load(model, args.init)
    config = RunConfig(
        arch=args.arch,
        settings=dict(network.settings),
        classes=dataset.classes,
        input=pictures() if tokenizer is None else input_of(args, network, tokenizer),
        training=training,
        start=None if args.init is None else str(args.init),
    )
    return run_training(args, config, data, dataset, model, tokenizer)


def _check_size(network: Network, dataset: Dataset) -> None:
    """Refuse pictures that are too small for the network.

    Raises:
        ValueError: If they are.
    """
    if dataset.task == "text":
        return
    height, width = np.asarray(dataset.test.inputs[:1]).shape[1:3]
    try:
        with torch.device("meta"):
            network.build().eval()(torch.zeros((2, 3, height, width)))
    except RuntimeError as error:
        raise ValueError(
            f"{network.arch} cannot read pictures of {width}x{height}; give larger ones or a "
            f"larger --image-size"
        ) from error


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The network's settings from --settings, --exits and --heads.

    Raises:
        ValueError: If one of them cannot be read.
    """
    settings = {} if args.settings is None else read_settings(args.settings)
    if args.exits is not None:
        layers = args.arch == "bert_4"
        exits = [] if args.exits == "none" else parse_exits(args.exits)
        settings["exits_after_layer" if layers else "exits"] = exits
        if args.exits == "none":
            settings["heads"] = []
    if args.heads is not None and args.exits != "none":
        settings["heads"] = parse_heads(args.heads)
    return settings


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
    """Numbers of blocks or layers, parted by commas.

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


def pictures() -> dict[str, Any]:
    """How pictures are normalised unless told otherwise."""
    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
