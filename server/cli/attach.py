"""`eenet attach`: exits onto a pretrained network."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from transformers.utils.logging import disable_progress_bar

from models.data.load import load_dataset
from models.networks import attach as attaching
from models.networks.families import Network
from models.networks.imagenet_resnet import BLOCKS, load_torchvision_weights
from models.networks.multi_exit import MultiExitModel, State
from models.training.exit_placement import layer_latencies, suggest_exits
from models.training.run import RUN_FILE, RunConfig, read_run
from models.training.trainer import EpochReport
from server.cli.progress import ENCODER, device_of, run_training, train_config
from server.cli.run_data import data_of
from server.cli.run_inputs import (
    IMAGENET_SIZE,
    TORCHVISION,
    check_vocabulary,
    images,
    max_tokens_of,
    parse_exits,
)

log = logging.getLogger(__name__)

TYPICAL_TOKENS = 48  # of a text whose latency is measured to choose exits
FINE_TUNING = {"peak_lr": 0.02, "epochs": 10, "batch_size": 64}  # of a pretrained ResNet


class _Start(NamedTuple):
    """A network with exits that starts from a backbone, and how it reads its input."""

    network: Network
    model: MultiExitModel
    input: dict[str, Any]
    tokenizer: str | None


def attach(args: argparse.Namespace) -> list[EpochReport]:
    """Choose exits where none are given, then train, or go on with, the run in `args.out`.

    Without a dataset only the choice is made and told.
    """
    # Of transformers, over some milliseconds of reading weights.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    is_resnet = Path(args.backbone).is_file()
    if is_resnet and args.arch not in TORCHVISION:
        raise ValueError(
            f"{args.backbone} is a file; of which network are its weights? give --arch "
            f"{', '.join(TORCHVISION)}"
        )
    if args.exits is None and args.budget_ms is None:
        raise ValueError("give --exits, or --budget-ms to have them chosen from a latency profile")
    if (args.dataset is None) != (args.out is None) or (args.exits and args.dataset is None):
        raise ValueError("give both --dataset and --out to train")
    device_of(args.device)
    exits = _exits(args, is_resnet)
    if args.dataset is None:
        return []
    training = train_config(args, FINE_TUNING if is_resnet else ENCODER)
    with torch.device("meta"):  # exits that cannot be are told before data are read
        _network(args, exits, 2).build()
    size = IMAGENET_SIZE if is_resnet else _image_size(args.backbone)
    if size is not None and not is_resnet and args.image_size not in (None, size):
        raise ValueError(
            f"--image-size is {args.image_size}; {args.backbone} reads images of {size}x{size}"
        )
    data = data_of(args, seed=training.seed, image_size=size)
    dataset = load_dataset(data)
    torch.manual_seed(training.seed)
    start = (_from_resnet if is_resnet else _from_encoder)(args, exits, len(dataset.classes))
    _align_classes(start, dataset.classes)
    task = start.network.family.task
    if dataset.task != task:
        raise ValueError(
            f"{args.backbone} reads {task}s, {data.dataset} is a dataset of the task {dataset.task}"
        )
    config = RunConfig(
        arch=start.network.arch,
        settings=dict(start.network.settings),
        classes=dataset.classes,
        input=start.input,
        training=training,
        start=str(args.backbone),
    )
    return run_training(args, config, data, dataset, start.model, start.tokenizer)


def _exits(args: argparse.Namespace, is_resnet: bool) -> Sequence[int]:
    """The exits that are asked for, those of the run that goes on, or a choice of our own."""
    if args.exits is not None:
        return parse_exits(args.exits)
    if args.out is not None and (args.out / RUN_FILE).exists():
        settings = read_run(args.out).settings
        before: Sequence[int] | None = settings.get("exits_after_layer") or settings.get("exits")
        if before is not None:
            return before
    return _chosen_exits(args, is_resnet)


def _network(args: argparse.Namespace, exits: Sequence[int], num_classes: int) -> Network:
    """The network that backbone and exits make, without its weights."""
    if Path(args.backbone).is_file():
        last = sum(BLOCKS[TORCHVISION[args.arch]])  # the end of a ResNet is an exit unnamed
        early = [block for block in exits if block != last]
        return Network(args.arch, {"num_classes": num_classes, "exits": early})
    described = attaching.describe(args.backbone)
    (layers,) = described.exits_after_layer
    ends = (*exits,) if exits and exits[-1] == layers else (*exits, layers)
    config = replace(described, exits_after_layer=ends, num_labels=num_classes)
    is_text = attaching.max_tokens(config) is not None
    return Network("attached-text" if is_text else "attached-image", asdict(config))


def _from_resnet(args: argparse.Namespace, exits: Sequence[int], num_classes: int) -> _Start:
    network = _network(args, exits, num_classes)
    model = network.build()
    load_torchvision_weights(model, Path(args.backbone))
    return _Start(network, model, images(), None)


def _from_encoder(args: argparse.Namespace, exits: Sequence[int], num_classes: int) -> _Start:
    network = _network(args, exits, num_classes)
    ends = network.settings["exits_after_layer"]
    most = attaching.max_tokens(attaching.AttachedConfig(**network.settings))
    tokenizer = None if most is None else read_pretrained_tokenizer(args.backbone)
    _, model = attaching.attach(args.backbone, ends, num_classes)
    if most is None or tokenizer is None:
        return _Start(network, model, _read_normalisation(args.backbone), None)
    backbone = network.settings["backbone"]
    check_vocabulary(tokenizer, backbone["vocab_size"])
    wanted = max_tokens_of(args, args.backbone, most)
    input = {"max_tokens": wanted, "pad_id": backbone.get("pad_token_id") or 0}
    return _Start(network, model, input, tokenizer)


def _align_classes(start: _Start, classes: Sequence[str]) -> None:
    """Bring the last exit of a backbone that was fine-tuned on these classes into their order."""
    named = start.network.settings.get("backbone", {}).get("id2label") or {}
    before = [name for _, name in sorted(named.items(), key=lambda entry: int(entry[0]))]
    if before == list(classes) or sorted(before) != sorted(classes):
        return
    linear = start.model.heads[-1].linear
    assert isinstance(linear, torch.nn.Linear), "every head ends with a linear layer"
    order = [before.index(name) for name in classes]
    with torch.no_grad():
        linear.weight.copy_(linear.weight[order].clone())
        linear.bias.copy_(linear.bias[order].clone())


def _chosen_exits(args: argparse.Namespace, is_resnet: bool) -> list[int]:
    """Exits for --budget-ms from the latency of each layer on this machine, told on the way."""
    if is_resnet:
        blocks = sum(BLOCKS[TORCHVISION[args.arch]])
        start = _from_resnet(args, range(1, blocks), 2)
    else:
        (layers,) = attaching.describe(args.backbone).exits_after_layer
        start = _from_encoder(args, range(1, layers), 2)
    latencies_ms = layer_latencies(start.model, _typical(start, args.backbone))
    exits = suggest_exits(latencies_ms, args.budget_ms, args.num_exits)
    print("layer: ms until its end")
    for layer, ms in enumerate(latencies_ms.cumsum(), start=1):
        print(f"{layer:5d}: {ms:8.3f}{'  exit' if layer in exits else ''}")
    print(f"exits for a mean of {args.budget_ms:g} ms: --exits {','.join(map(str, exits))}")
    return list(exits)


def _typical(start: _Start, backbone: str) -> State:
    """One row of a usual size."""
    if start.tokenizer is not None:
        ids = torch.ones((1, min(TYPICAL_TOKENS, start.input["max_tokens"])), dtype=torch.int64)
        return ids, torch.ones_like(ids)
    size = IMAGENET_SIZE if Path(backbone).is_file() else _image_size(backbone)
    assert size is not None, "what reads no text reads images"
    return torch.zeros((1, 3, size, size))


def _image_size(backbone: str) -> int | None:
    """Side of the images that an encoder reads, None for texts.

    Raises:
        ValueError: If the images are no squares, which is what datasets are brought to.
    """
    size = attaching.image_input(attaching.describe(backbone))
    if size is not None and size[0] != size[1]:
        raise ValueError(f"{backbone} reads images of {size[1]}x{size[0]}; only squares will do")
    return None if size is None else size[0]


def read_pretrained_tokenizer(backbone: str) -> str:
    """The `tokenizer.json` of a pretrained encoder, made from its vocabulary where it has none.

    Raises:
        ValueError: If the backbone comes without a tokenizer.
    """
    from transformers import AutoTokenizer

    sentence = (
        f"{backbone} comes without a tokenizer that can be read; save it there with "
        f"tokenizer.save_pretrained"
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(backbone)
        own: Tokenizer = tokenizer.backend_tokenizer
    except Exception as error:  # transformers raises many types
        raise ValueError(sentence) from error
    # Where there is none, transformers makes one up that has special tokens alone.
    if own.get_vocab_size() <= len(tokenizer.all_special_tokens):
        raise ValueError(sentence)
    return own.to_str()


def _read_normalisation(backbone: str) -> dict[str, Any]:
    """Mean and standard deviation that the backbone was trained with, ImageNet's if unknown."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        described, _ = BaseImageProcessor.get_image_processor_dict(backbone)
    except OSError:
        log.warning(
            "%s comes without preprocessor_config.json: images are normalised as ImageNet's",
            backbone,
        )
        return images()
    if described.get("do_normalize") is False:
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return {
        name: tuple(described.get(f"image_{name}") or default) for name, default in images().items()
    }
