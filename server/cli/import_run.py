"""`eenet import`: turns ONNX files, or a checkpoint of the published EENet code, into a run."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import TOKENIZER
from models.training.run import BEST, RunConfig, create_run_dir
from server.cli.import_onnx import add_onnx_flags, run_import
from server.cli.import_triton import run_triton
from server.cli.options import (
    add_data,
    add_json,
    imagenet_input,
    prepare_training,
    read_settings,
    read_tokenizer,
    text_input,
)

EXAMPLE = "eenet import --onnx stages/ heads/ --dataset photos/ --out runs/given"
# Normalisation of CIFAR-10 and CIFAR-100 in the published code, by the number of classes.
PUBLISHED_IMAGES = {
    10: {"mean": (0.4914, 0.4824, 0.4467), "std": (0.2471, 0.2435, 0.2616)},
    100: {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)},
}
PUBLISHED_NAMES = {"bert_4": "bert"}  # that `load_published` knows by another name


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="?",
        help=".tar, .pth or .safetensors of the published EENet code",
    )
    parser.add_argument("--arch", help="resnet56_3, densenet121_4, msdnet or bert_4")
    parser.add_argument("--classes", type=int, help="number of classes of a checkpoint")
    parser.add_argument(
        "--onnx",
        nargs="+",
        metavar="PATH",
        help="in place of a checkpoint: one ONNX file whose outputs are the exits, or a folder of "
        "stages and a folder of heads (0.onnx, 1.onnx, ...); needs --dataset",
    )
    parser.add_argument(
        "--triton",
        type=Path,
        metavar="DIR",
        help="in place of a checkpoint: an entry of a Triton repository with an ONNX classifier, "
        "DIR/config.pbtxt and DIR/VERSION/model.onnx; needs --dataset",
    )
    parser.add_argument(
        "--num-exits",
        type=int,
        help="for --triton: number of exits of a network with one output (default: 4)",
    )
    add_onnx_flags(parser)
    add_data(parser, required=False)
    parser.add_argument(
        "--settings", type=Path, help="JSON of the network's settings (msdnet and bert_4)"
    )
    parser.add_argument(
        "--latencies",
        type=Path,
        help="CSV of the seconds until each exit, to fit to instead of this machine's",
    )
    parser.add_argument("--tokenizer", type=Path, help="for bert_4: a tokenizer.json or its folder")
    parser.add_argument(
        "--max-tokens", type=int, help="for bert_4: most tokens of a text; the rest is cut"
    )
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}",
            help=f"{name} of the images, R,G,B (10 and 100 classes: CIFAR's, else ImageNet's)",
        )
    parser.add_argument("--out", required=True, type=Path, help="folder of the run")
    add_json(parser, "what was imported")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Import the checkpoint, the ONNX files or the entry of a Triton repository."""
    prepare_training()
    _check_source(args)
    if args.triton is not None:
        return run_triton(args)
    if args.onnx is not None:
        return run_import(args)
    import_published(args)
    print(f"{args.out}: a run of {args.arch}; build it with eenet build {args.out} --dataset ...")
    return {"run": str(args.out), "arch": args.arch}


def _check_source(args: argparse.Namespace) -> None:
    """Check that the flags belong to one kind of network.

    Raises:
        ValueError: If they do not.
    """
    sources = (args.checkpoint, args.onnx, args.triton)
    if sum(source is not None for source in sources) != 1:
        raise ValueError(
            "give one network: a CHECKPOINT with --arch and --classes, or --onnx, or --triton"
        )
    if args.num_exits is not None and args.triton is None:
        raise ValueError("--num-exits belongs to --triton; the exits of other networks are given")
    kept = ("arch", "classes", "settings", "latencies", "tokenizer", "max_tokens", "mean", "std")
    given = [name for name in kept if getattr(args, name) is not None]
    if args.checkpoint is None:
        if given:
            raise ValueError(
                f"--{given[0].replace('_', '-')} belongs to a checkpoint; with "
                f"{'--triton' if args.onnx is None else '--onnx'}, give --preprocessing"
            )
        return
    if args.arch is None or args.classes is None:
        raise ValueError("a checkpoint needs --arch, its network, and --classes, their number")
    if args.preprocessing is not None:
        raise ValueError("--preprocessing belongs to --onnx; a checkpoint takes --mean and --std")
    if args.dataset is not None:
        raise ValueError("--dataset belongs to --onnx; eenet build takes it for a checkpoint")


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return f"stopped; {args.out} is not complete; run the same command again"


def import_published(args: argparse.Namespace) -> None:
    """Write the run of a checkpoint into `args.out`.

    Raises:
        ValueError: If settings, checkpoint or latencies cannot be read or do not fit together.
    """
    from safetensors.torch import save_file

    from models.published import load_published, network_of

    arch = PUBLISHED_NAMES.get(args.arch, args.arch)
    network = network_of(arch, _settings(args))
    is_text = network.family.task == "text"
    tokenizer = read_tokenizer(args.tokenizer) if is_text else None
    model = load_published(arch, args.checkpoint, **network.settings)
    costs_ms = None if args.latencies is None else _read_latencies(args.latencies, model.num_exits)
    config = RunConfig(
        arch=network.arch,
        settings=dict(network.settings),
        classes=_class_names(args),
        input=_images(args) if tokenizer is None else text_input(args, network, tokenizer),
        start=str(args.checkpoint),
        costs_ms=costs_ms,
    )
    create_run_dir(args.out, config)
    if tokenizer is not None:
        (args.out / TOKENIZER).write_text(tokenizer)
    save_file(model.state_dict(), args.out / BEST)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The network's settings, with the number of classes of --classes."""
    from models.networks.msdnet import CLASSES

    given = {} if args.settings is None else read_settings(args.settings)
    if args.arch == "msdnet" and not given:
        raise ValueError("msdnet needs --settings, the JSON of its parameters (base, step, ...)")
    if args.arch == "bert_4" and not given:
        raise ValueError("bert_4 needs --settings, the JSON of its sizes (vocab_size, ...)")
    key = "num_labels" if args.arch == "bert_4" else "num_classes"
    held = given.get(key, CLASSES.get(str(given.get("data")), args.classes))
    if held != args.classes:
        raise ValueError(f"{args.settings} has {held} classes, but --classes is {args.classes}")
    return {**given, key: args.classes}


def _read_latencies(path: Path, num_exits: int) -> tuple[float, ...]:
    """Milliseconds until each exit, (K,), from a file of seconds."""
    try:
        seconds = np.array(path.read_text().replace(",", " ").split(), np.float64)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} does not hold plain numbers only: {error}") from error
    rising = np.isfinite(seconds).all() and (np.diff(seconds, prepend=0.0) > 0).all()
    if len(seconds) != num_exits or not rising:
        raise ValueError(
            f"{path} holds {len(seconds)} numbers, {seconds.tolist()}; give {num_exits}, the "
            f"seconds until each exit, rising from above 0"
        )
    return tuple((1e3 * seconds).tolist())


def _images(args: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(args, name) for name in ("mean", "std")}
    try:
        numbers = {
            name: tuple(float(part) for part in text.split(","))
            for name, text in given.items()
            if text is not None
        }
    except ValueError as error:
        raise ValueError(
            f"--mean and --std take three numbers, as in 0.5,0.5,0.5; {error}"
        ) from error
    for name, values in numbers.items():
        sound = len(values) == 3 and np.isfinite(values).all()
        if not sound or (name == "std" and min(values) <= 0):
            raise ValueError(f"--{name} is {given[name]}; give three numbers, R,G,B")
    return {**PUBLISHED_IMAGES.get(args.classes, imagenet_input()), **numbers}


def _class_names(args: argparse.Namespace) -> tuple[str, ...]:
    """Names of the classes in the checkpoint's order; none if they are not given."""
    if args.class_names is None:
        return ()
    names = tuple(name.strip() for name in args.class_names.split(","))
    if len(names) != args.classes:
        raise ValueError(f"--class-names holds {len(names)} names, but --classes is {args.classes}")
    return names
