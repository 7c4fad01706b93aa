"""`eenet train`: trains a network of a family, from scratch or from plain weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.networks.families import FAMILIES, Network, describe_trainable, trainable_names
from models.training.run import (
    LAST,
    RUN_FILE,
    RunConfig,
    TrainConfig,
    create_run_dir,
    read_run,
)
from server.cli.options import (
    IMAGENET_SIZE,
    add_data,
    add_training,
    data_of,
    imagenet_input,
    parse_exits,
    prepare_training,
    read_settings,
    read_tokenizer,
    text_input,
    torchvision_resnets,
)
from server.cli.progress import Progress
from server.spelling import did_you_mean

if TYPE_CHECKING:
    from models.data.dataset import DataConfig, Dataset
    from models.networks.family import Family
    from models.networks.multi_exit import MultiExitModel
    from models.training.trainer import EpochReport

EXAMPLE = "eenet train --arch resnet56 --exits 9,18 --dataset cifar10_jpegs.npz --out runs/mine"
ADAMW = {"optimizer": "adamw", "peak_lr": 5e-5, "weight_decay": 0.01}  # where adamw is asked for
ENCODER = {**ADAMW, "epochs": 3, "batch_size": 32}  # pretrained transformers
NEW_ENCODER = {**ADAMW, "peak_lr": 5e-4, "batch_size": 32}  # transformers from scratch


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--arch",
        required=True,
        help=describe_trainable(),
    )
    parser.add_argument(
        "--settings", type=Path, help="JSON of the network's settings, such as MSDNet's `base`"
    )
    parser.add_argument(
        "--exits", help="blocks or layers with an exit after them, or none (the family's own)"
    )
    parser.add_argument(
        "--heads",
        help="3x3 convolutions of a ResNet's early heads, CHANNELS/STRIDE: 32/2,64/2;64/2",
    )
    parser.add_argument(
        "--init",
        type=Path,
        help="weights to start from: of a plain ResNet, or best.safetensors of a ResNet's run",
    )
    parser.add_argument("--tokenizer", type=Path, help="for bert_4: a tokenizer.json or its folder")
    add_data(parser)
    add_training(parser)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and return the reports of all epochs."""
    prepare_training()
    return [report._asdict() for report in train(args)]


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return resume_sentence(args.out)


def resume_sentence(out: Path | None) -> str:
    """Sentence after Ctrl-C in a training into a folder."""
    if out is not None and (out / LAST).exists():
        return f"stopped; the same command resumes from the last checkpoint in {out}"
    if out is not None and (out / RUN_FILE).exists():
        return f"stopped before the first checkpoint; the same command starts {out} again"
    return "stopped; nothing was written; run the same command again"


def train(args: argparse.Namespace) -> list[EpochReport]:
    """Train the run in `args.out`, or resume it."""
    import torch

    from models.data.load import load_dataset

    suggest_arch(args.arch)
    family = Network(args.arch).family
    _check_arch(args, family)
    device_of(args.device)
    training = train_config(args, NEW_ENCODER if family.task == "text" else {})
    given = {**family.defaults, **settings_of(args)}
    tokenizer = read_tokenizer(args.tokenizer) if family.task == "text" else None
    with torch.device("meta"):  # reports settings that make no network before it reads data
        Network(args.arch, {**given, family.classes: 2}).build()
    size = IMAGENET_SIZE if args.arch in torchvision_resnets() else None
    data = data_of(args, seed=training.seed, image_size=size, stratified=is_stratified(args.out))
    dataset = load_dataset(data)
    if dataset.task != family.task:
        raise ValueError(
            f"{args.arch} is trained for the task {family.task}, {data.dataset} is a dataset of "
            f"the task {dataset.task}"
        )
    network = Network(args.arch, {**given, family.classes: len(dataset.classes)})
    _check_size(network, dataset)
    torch.manual_seed(training.seed)
    config = RunConfig(
        arch=args.arch,
        settings=dict(network.settings),
        classes=dataset.classes,
        input=imagenet_input() if tokenizer is None else text_input(args, network, tokenizer),
        training=training,
        start=None if args.init is None else str(args.init),
    )
    return run_training(args, config, data, dataset, _build_model(args, network), tokenizer)


def suggest_arch(arch: str) -> None:
    """Suggest the network that an unknown name was meant for.

    Raises:
        ValueError: If the name is unknown, but close to a known one.
    """
    known = trainable_names()
    if arch not in known and (hint := did_you_mean(arch, known)) and arch not in FAMILIES:
        raise ValueError(f"architecture {arch!r} is unknown{hint}")


def _check_arch(args: argparse.Namespace, family: Family) -> None:
    if args.arch.startswith("attached"):
        raise ValueError(f"{args.arch} is made by `eenet attach`; train takes no such --arch")
    if args.init is not None and not args.arch.removeprefix("resnet").isdigit():
        raise ValueError(f"--init takes the weights of a plain ResNet; {args.arch} is none")
    if args.init is not None and not args.init.is_file():
        raise ValueError(f"{args.init} does not exist; --init takes the weights of a plain ResNet")


def _build_model(args: argparse.Namespace, network: Network) -> MultiExitModel:
    from models.networks.imagenet_resnet import load_torchvision_weights
    from models.networks.resnet import load_weights

    model = network.build()
    if args.init is not None:
        is_torchvision = args.arch in torchvision_resnets()
        load = load_torchvision_weights if is_torchvision else load_weights
        load(model, args.init)
    return model


def _check_size(network: Network, dataset: Dataset) -> None:
    """Refuse images that are too small for the network.

    Raises:
        ValueError: If they are.
    """
    import numpy as np
    import torch

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
    from models.networks.heads import parse_heads

    settings = {} if args.settings is None else read_settings(args.settings)
    if args.exits is not None:
        exits = [] if args.exits == "none" else parse_exits(args.exits)
        settings[Network(args.arch).family.exits] = exits
        if args.exits == "none":
            settings["heads"] = []
    if args.heads is not None and args.exits != "none":
        settings["heads"] = parse_heads(args.heads)
    return settings


def train_config(args: argparse.Namespace, defaults: Mapping[str, Any]) -> TrainConfig:
    """The training that the flags describe; `defaults` hold for flags that were not given."""
    names = set(TrainConfig.__dataclass_fields__) & set(vars(args))
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if given.get("optimizer") == "adamw":
        defaults = {**defaults, **ADAMW}
    return TrainConfig(**{**defaults, **given})


def is_stratified(out: Path) -> bool:
    """Whether rows are held out class by class: always, unless an older run there did not."""
    if not (out / RUN_FILE).exists():
        return True
    data = read_run(out).data
    return data is None or bool(data["stratified"])


def device_of(name: str) -> str:
    """The torch device that a flag names; auto: a GPU if there is one.

    Raises:
        ValueError: If it is not available.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} is not available: torch finds no GPU; use cpu")
    try:
        return str(torch.device(name))
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown; use auto, cpu or cuda") from error


def run_training(
    args: argparse.Namespace,
    config: RunConfig,
    data: DataConfig,
    dataset: Dataset,
    model: MultiExitModel,
    tokenizer: str | None = None,
) -> list[EpochReport]:
    """Train the run in `args.out`, or resume it.

    Args:
        args: Flags of a command that trains.
        config: The run, without its data.
        data: Its dataset.
        dataset: The same dataset, loaded.
        model: The network to start from.
        tokenizer: Content of `tokenizer.json` for a run that reads texts.

    Raises:
        ValueError: If the folder holds a run of other settings or another tokenizer, or the device
            is not available.
    """
    from models.bundle import TOKENIZER
    from models.networks.label_sets import with_label_sets
    from models.training.batches import batches_for
    from models.training.trainer import Trainer

    assert config.training is not None, "imported runs are not trained"
    label_sets = dataset.task != "segmentation" and dataset.train.labels.ndim > 1
    if label_sets:
        model = with_label_sets(model, len(dataset.classes))
    described = replace(config, data=asdict(data), label_sets=label_sets)
    args.out.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        _write_tokenizer(args.out / TOKENIZER, tokenizer)
    trainer = Trainer(
        config.training,
        dataset,
        batches_for(dataset.task, config.input, args.out / TOKENIZER),
        args.out,
        model,
        device=device_of(args.device),
        compiled=args.compile,
    )
    create_run_dir(args.out, described)  # last: settings that fail must not claim the folder
    reporter = TrainingReporter(config.training.epochs * trainer.steps_per_epoch)
    try:
        return trainer.run(reporter.step, reporter.epoch)
    finally:
        reporter.close()


def _write_tokenizer(path: Path, tokenizer: str) -> None:
    same = path.exists() and path.read_text() == tokenizer
    if (path.parent / RUN_FILE).exists() and not same:
        raise ValueError(
            f"{path.parent} holds a run with another tokenizer; give another --out, or the same "
            f"tokenizer to resume it"
        )
    part = path.with_suffix(".part")
    part.write_text(tokenizer)
    part.replace(path)


class TrainingReporter:
    """Shows the steps of a training and prints its epochs.

    Args:
        total: Steps of the whole training.
        progress: Makes the display from the label, the total and the steps done before.
    """

    def __init__(self, total: int, progress: Callable[..., Progress] = Progress) -> None:
        self._total = total
        self._make = progress
        self._shown: Progress | None = None

    def step(self, step: int, loss: float) -> None:
        """Show the loss of a step."""
        if self._shown is None:  # a resumed training begins later than at 0
            self._shown = self._make("step", self._total, done=step - 1)
        self._shown.update(step, f"loss {loss:.3f}")

    def epoch(self, report: EpochReport) -> None:
        """Print the accuracies of an epoch."""
        test, calibration = (
            " ".join(f"{100 * share:.2f}" for share in accuracy)
            for accuracy in (report.test_accuracy, report.calibration_accuracy)
        )
        assert self._shown is not None, "an epoch has steps"
        self._shown.log(
            f"epoch {report.epoch}: loss {report.train_loss:.3f}, accuracy per exit: "
            f"test {test} %, calibration {calibration} % ({report.seconds:.0f} s)"
        )

    def close(self) -> None:
        """Remove the bar."""
        if self._shown is not None:
            self._shown.close()
