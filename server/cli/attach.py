"""`eenet attach`: puts exits onto a pretrained network and trains them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from models.networks.families import IMAGENET_RESNETS, Network
from models.training.run import RUN_FILE, RunConfig, read_run
from server.cli.attach_onnx import run_attach
from server.cli.import_onnx import add_onnx_flags
from server.cli.options import (
    IMAGENET_SIZE,
    add_data,
    add_training,
    check_vocabulary,
    data_of,
    imagenet_input,
    max_tokens_of,
    parse_exits,
    prepare_training,
    reads_pairs,
    separator_of,
    torchvision_resnets,
)
from server.cli.train import (
    ENCODER,
    device_of,
    is_stratified,
    resume_sentence,
    run_training,
    train_config,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from models.data.dataset import DataConfig, Dataset
    from models.networks.attach import Head
    from models.networks.multi_exit import MultiExitModel, State
    from models.training.trainer import EpochReport

log = logging.getLogger(__name__)

EXAMPLE = "eenet attach --backbone my-bert --exits 3,6,9,12 --dataset reviews.csv --out runs/bert"
TYPICAL_TOKENS = 48  # length of the text whose latency is measured to choose exits
FINE_TUNING = {"peak_lr": 0.02, "epochs": 10, "batch_size": 64}  # pretrained ResNets


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--backbone",
        help="folder or hub name of a transformers encoder (BERT, RoBERTa, DistilBERT, ELECTRA, "
        "ViT, DeiT ...), or a torchvision ResNet's state dict (.pth, .safetensors) with --arch",
    )
    parser.add_argument("--arch", help=f"network of a state dict: {', '.join(IMAGENET_RESNETS)}")
    parser.add_argument(
        "--onnx",
        metavar="FILE",
        help="in place of a backbone: a classifier of any framework; its weights stay as they are",
    )
    parser.add_argument("--output", help="for --onnx: name of the output of scores, if several are")
    add_onnx_flags(parser)
    parser.add_argument(
        "--exits",
        help="layers (for a ResNet: blocks; for --onnx: the places that it lists without "
        "--dataset), counted from 1, with an exit after them; the end always has one (default: "
        "chosen for --budget-ms; for --onnx evenly by cost)",
    )
    parser.add_argument(
        "--budget-ms", type=float, help="mean latency to choose exits for, on this machine's CPU"
    )
    parser.add_argument(
        "--num-exits", type=int, default=4, help="number of exits to choose (default: %(default)s)"
    )
    parser.add_argument(
        "--heads-only", action="store_true", help="do not train the backbone's weights"
    )
    add_data(parser, required=False)
    add_training(parser, required=False)


def run(args: argparse.Namespace) -> list[dict[str, Any]] | dict[str, Any]:
    """Choose exits or train; return the reports of all epochs, or of an ONNX network's exits."""
    prepare_training()
    if (args.backbone is None) == (args.onnx is None):
        raise ValueError("give one network: --backbone, or --onnx with an ONNX file")
    if args.onnx is not None:
        return run_attach(args)
    if args.preprocessing is not None or args.class_names is not None or args.output is not None:
        raise ValueError("--preprocessing, --class-names and --output belong to --onnx")
    return [report._asdict() for report in attach(args)]


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return resume_sentence(args.out)


class _Start(NamedTuple):
    """A network with exits on a backbone, its preprocessing settings and tokenizer.

    `head` says whether the last exit has the backbone's classifier.
    """

    network: Network
    model: MultiExitModel
    input: dict[str, Any]
    tokenizer: str | None
    head: Head = "absent"


def attach(args: argparse.Namespace) -> list[EpochReport]:
    """Choose exits if none are given, then train the run in `args.out`, or resume it.

    Without a dataset it only chooses and prints the exits.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from models.data.load import load_dataset

    disable_progress_bar()  # type: ignore[no-untyped-call]  # reading weights takes milliseconds
    is_resnet = Path(args.backbone).is_file()
    _check_flags(args, is_resnet)
    exits = _exits(args, is_resnet)
    if args.dataset is None:
        return []
    training = train_config(args, FINE_TUNING if is_resnet else ENCODER)
    with torch.device("meta"):  # reports impossible exits before it reads data
        _network(args, exits, 2).build()
    size = IMAGENET_SIZE if is_resnet else _image_size(args.backbone)
    if size is not None and not is_resnet and args.image_size not in (None, size):
        raise ValueError(
            f"--image-size is {args.image_size}; {args.backbone} reads images of {size}x{size}"
        )
    data = data_of(args, seed=training.seed, image_size=size, stratified=is_stratified(args.out))
    dataset = load_dataset(data)
    torch.manual_seed(training.seed)
    start = (_from_resnet if is_resnet else _from_encoder)(args, exits, len(dataset.classes))
    _check_task(args, start, data, dataset)
    if not is_resnet:
        from models.training.class_match import rename
        from models.training.pretrained_head import adopt_head

        backbone = start.network.settings["backbone"]
        match = adopt_head(str(args.backbone), start.model, backbone, dataset, start.head)
        dataset = rename(dataset, match.names)
    config = RunConfig(
        arch=start.network.arch,
        settings=dict(start.network.settings),
        classes=dataset.classes,
        input=start.input,
        training=training,
        start=str(args.backbone),
    )
    return run_training(args, config, data, dataset, start.model, start.tokenizer)


def _check_flags(args: argparse.Namespace, is_resnet: bool) -> None:
    resnets = torchvision_resnets()
    if is_resnet and args.arch not in resnets:
        raise ValueError(
            f"{args.backbone} is a file; of which network are its weights? give --arch "
            f"{', '.join(resnets)}"
        )
    if args.exits is None and args.budget_ms is None:
        raise ValueError("give --exits, or --budget-ms to have them chosen from a latency profile")
    if (args.dataset is None) != (args.out is None) or (args.exits and args.dataset is None):
        raise ValueError("give both --dataset and --out to train")
    device_of(args.device)


def _check_task(
    args: argparse.Namespace, start: _Start, data: DataConfig, dataset: Dataset
) -> None:
    task = start.network.family.task
    if dataset.task != task:
        raise ValueError(
            f"{args.backbone} reads {task}s, {data.dataset} is a dataset of the task {dataset.task}"
        )


def _exits(args: argparse.Namespace, is_resnet: bool) -> Sequence[int]:
    """The exits that --exits gives, those of the run to resume, or a choice by latency."""
    if args.exits is not None:
        return parse_exits(args.exits)
    if args.out is not None and (args.out / RUN_FILE).exists():
        settings = read_run(args.out).settings
        before: Sequence[int] | None = settings.get("exits_after_layer") or settings.get("exits")
        if before is not None:
            return before
    return _chosen_exits(args, is_resnet)


def _network(args: argparse.Namespace, exits: Sequence[int], num_classes: int) -> Network:
    """The network of a backbone and exits, without its weights."""
    from models.networks import attach as attaching

    if Path(args.backbone).is_file():
        last = torchvision_resnets()[args.arch]  # a ResNet's last exit is implied
        early = [block for block in exits if block != last]
        return Network(args.arch, {"num_classes": num_classes, "exits": early})
    described = attaching.describe(args.backbone)
    (layers,) = described.exits_after_layer
    ends = (*exits,) if exits and exits[-1] == layers else (*exits, layers)
    config = replace(described, exits_after_layer=ends, num_labels=num_classes)
    is_text = attaching.max_tokens(config) is not None
    return Network("attached-text" if is_text else "attached-image", asdict(config))


def _from_resnet(args: argparse.Namespace, exits: Sequence[int], num_classes: int) -> _Start:
    from models.networks.imagenet_resnet import load_torchvision_weights

    network = _network(args, exits, num_classes)
    model = network.build()
    load_torchvision_weights(model, Path(args.backbone))
    return _Start(network, model, imagenet_input(), None)


def _from_encoder(args: argparse.Namespace, exits: Sequence[int], num_classes: int) -> _Start:
    from models.networks import attach as attaching

    network = _network(args, exits, num_classes)
    ends = network.settings["exits_after_layer"]
    most = attaching.max_tokens(attaching.AttachedConfig(**network.settings))
    tokenizer = None if most is None else read_pretrained_tokenizer(args.backbone)
    separator = None
    is_pair = tokenizer is not None and reads_pairs(args)
    if is_pair and attaching.has_segments(attaching.AttachedConfig(**network.settings)):
        separator = separator_of(tokenizer or "")
        settings = {**network.settings, "separator_id": separator}
        network = Network(network.arch, settings)
    _, model, head = attaching.load_attached(args.backbone, ends, num_classes, separator)
    if most is None or tokenizer is None:
        return _Start(network, model, _read_normalisation(args.backbone), None, head)
    backbone = network.settings["backbone"]
    check_vocabulary(tokenizer, backbone["vocab_size"])
    wanted = max_tokens_of(args, args.backbone, most)
    input: dict[str, Any] = {"max_tokens": wanted, "pad_id": backbone.get("pad_token_id") or 0}
    if is_pair:
        input["pair"] = True
    return _Start(network, model, input, tokenizer, head)


def _chosen_exits(args: argparse.Namespace, is_resnet: bool) -> list[int]:
    """Choose exits for --budget-ms by the latency of each layer on this machine; print both."""
    from models.networks import attach as attaching
    from models.training.exit_placement import layer_latencies, suggest_exits

    if is_resnet:
        start = _from_resnet(args, range(1, torchvision_resnets()[args.arch]), 2)
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
    """An input row of typical size."""
    import torch

    if start.tokenizer is not None:
        ids = torch.ones((1, min(TYPICAL_TOKENS, start.input["max_tokens"])), dtype=torch.int64)
        return ids, torch.ones_like(ids)
    size = IMAGENET_SIZE if Path(backbone).is_file() else _image_size(backbone)
    assert size is not None, "networks without a tokenizer read images"
    return torch.zeros((1, 3, size, size))


def _image_size(backbone: str) -> int | None:
    """Side of the images that an encoder reads, None for texts.

    Raises:
        ValueError: If the images are not square, as those of datasets are.
    """
    from models.networks import attach as attaching

    size = attaching.image_input(attaching.describe(backbone))
    if size is not None and size[0] != size[1]:
        raise ValueError(
            f"{backbone} reads images of {size[1]}x{size[0]}; only square images are supported"
        )
    return None if size is None else size[0]


def read_pretrained_tokenizer(backbone: str) -> str:
    """The `tokenizer.json` of a pretrained encoder, or one made from its vocabulary.

    Raises:
        ValueError: If the backbone has no tokenizer.
    """
    from transformers import AutoTokenizer

    from models.networks.pretrained_files import encoder_of

    sentence = (
        f"{backbone} has no tokenizer that can be read; save one there with "
        f"tokenizer.save_pretrained"
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder_of(backbone), trust_remote_code=False)
        own: Tokenizer = tokenizer.backend_tokenizer
    except Exception as error:  # transformers raises many types
        raise ValueError(sentence) from error
    # Without one, transformers makes up a tokenizer that has special tokens only.
    if own.get_vocab_size() <= len(tokenizer.all_special_tokens):
        raise ValueError(sentence)
    return own.to_str()


def _read_normalisation(backbone: str) -> dict[str, Any]:
    """Normalisation that the backbone was trained with; ImageNet's if it is unknown."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        described, _ = BaseImageProcessor.get_image_processor_dict(backbone)
    except OSError:
        log.warning(
            "%s has no preprocessor_config.json: images are normalised as for ImageNet",
            backbone,
        )
        return imagenet_input()
    if described.get("do_normalize") is False:
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return {
        name: tuple(described.get(f"image_{name}") or default)
        for name, default in imagenet_input().items()
    }
