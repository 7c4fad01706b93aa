"""`eenet train`: a network of a family, from scratch or from plain weights."""

import argparse
from typing import Any

import numpy as np
import torch

from models.data.dataset import Dataset
from models.data.load import load_dataset
from models.networks.families import Network
from models.networks.heads import parse_heads
from models.networks.imagenet_resnet import load_torchvision_weights
from models.networks.resnet import load_plain_weights
from models.training.run import RunConfig
from models.training.trainer import EpochReport
from server.cli.progress import NEW_ENCODER, device_of, run_training, train_config
from server.cli.run_data import data_of
from server.cli.run_inputs import (
    IMAGENET_SIZE,
    TORCHVISION,
    images,
    input_of,
    parse_exits,
    read_settings,
    read_tokenizer,
)


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
            f"{args.arch} is trained for the task {family.task}, {data.dataset} is a dataset of "
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
        input=images() if tokenizer is None else input_of(args, network, tokenizer),
        training=training,
        start=None if args.init is None else str(args.init),
    )
    return run_training(args, config, data, dataset, model, tokenizer)


def _check_size(network: Network, dataset: Dataset) -> None:
    """Refuse images that are too small for the network.

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
            f"{network.arch} cannot read images of {width}x{height}; give larger ones or a "
            f"larger --image-size"
        ) from error


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The network's settings from --settings, --exits and --heads.

    Raises:
        ValueError: If one of them cannot be read.
    """
    settings = {} if args.settings is None else read_settings(args.settings)
    if args.exits is not None:
        exits = [] if args.exits == "none" else parse_exits(args.exits)
        settings[Network(args.arch).family.exits] = exits
        if args.exits == "none":
            settings["heads"] = []
    if args.heads is not None and args.exits != "none":
        settings["heads"] = parse_heads(args.heads)
    return settings
