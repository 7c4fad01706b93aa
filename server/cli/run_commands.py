"""`eenet train`, `attach`, `import` and `build`: from a dataset or a checkpoint to a bundle."""

import argparse
import dataclasses
import json
import logging
import warnings
from pathlib import Path
from typing import Any, get_args

from models.bundle import Weights
from models.networks.families import IMAGENET_RESNETS, describe_trainable
from models.training.run import TrainConfig
from scheduler.policies import DEFAULT_POLICY, POLICIES
from server.cli.options import (
    command,
    log_step,
    log_to_stderr,
    print_evaluations,
    require_training_extra,
)

DATASETS = (
    "cifar10, cifar100, fashion-mnist, tiny-imagenet, sst2, ag_news or shapes (synthetic masks); a "
    "folder of images train/CLASS/* and test/CLASS/*; a CSV, TSV or JSONL of texts, or a folder "
    "with train.* and test.*; an .npz of encoded images"
)


def add_train(commands: Any) -> None:
    """`eenet train`."""
    parser = command(
        commands,
        "train",
        "Train a multi-exit network; goes on where it was stopped.",
        "eenet train --arch resnet56 --exits 9,18 --dataset cifar10_jpegs.npz --out runs/mine",
        _train,
    )
    parser.add_argument(
        "--arch",
        required=True,
        help=describe_trainable(),
    )
    parser.add_argument(
        "--settings", type=Path, help="JSON of the network's settings, such as MSDNet's `base`"
    )
    parser.add_argument(
        "--exits", help="blocks or layers after which an exit stands, or none (the family's own)"
    )
    parser.add_argument(
        "--heads",
        help="3x3 convolutions of a ResNet's early heads, CHANNELS/STRIDE: 32/2,64/2;64/2",
    )
    parser.add_argument("--init", type=Path, help="weights of a plain ResNet to start from")
    parser.add_argument("--tokenizer", type=Path, help="of bert_4: a tokenizer.json or its folder")
    _add_data(parser)
    _add_training(parser)


def add_attach(commands: Any) -> None:
    """`eenet attach`."""
    parser = command(
        commands,
        "attach",
        "Put exits onto a pretrained network and train them; goes on where it was stopped.",
        "eenet attach --backbone my-bert --exits 3,6,9,12 --dataset reviews.csv --out runs/bert",
        _attach,
    )
    parser.add_argument(
        "--backbone",
        required=True,
        help="folder or hub name of a transformers encoder (BERT, RoBERTa, DistilBERT, ELECTRA, "
        "ViT, DeiT ...), or a torchvision ResNet's state dict (.pth, .safetensors) with --arch",
    )
    parser.add_argument("--arch", help=f"the state dict's: {', '.join(IMAGENET_RESNETS)}")
    parser.add_argument(
        "--exits",
        help="layers (a ResNet: blocks), counted from 1, after which an exit stands; the end is "
        "one anyway (default: chosen for --budget-ms)",
    )
    parser.add_argument(
        "--budget-ms", type=float, help="mean latency to choose exits for, on this machine's CPU"
    )
    parser.add_argument(
        "--num-exits", type=int, default=4, help="how many to choose (default: %(default)s)"
    )
    parser.add_argument(
        "--heads-only", action="store_true", help="leave the backbone's weights as they are"
    )
    _add_data(parser, required=False)
    _add_training(parser, required=False)


def add_import(commands: Any) -> None:
    """`eenet import`."""
    parser = command(
        commands,
        "import",
        "Make a run of a checkpoint of the published EENet code.",
        "eenet import model_best.pth.tar --arch resnet56_3 --classes 10 --out runs/published",
        _import,
    )
    parser.add_argument("checkpoint", type=Path, help=".tar, .pth or .safetensors")
    parser.add_argument("--arch", required=True, help="resnet56_3, densenet121_4, msdnet or bert_4")
    parser.add_argument("--classes", required=True, type=int, help="how many classes it has")
    parser.add_argument(
        "--class-names",
        help="their names in the checkpoint's order, NAME,NAME,... (default: the dataset's order)",
    )
    parser.add_argument(
        "--settings", type=Path, help="JSON of the network's settings (msdnet and bert_4)"
    )
    parser.add_argument(
        "--latencies",
        type=Path,
        help="CSV of the seconds until each exit, to fit to instead of this machine's",
    )
    parser.add_argument("--tokenizer", type=Path, help="of bert_4: a tokenizer.json or its folder")
    parser.add_argument("--max-tokens", type=int, help="of bert_4: where texts are cut")
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}",
            help=f"{name} of the images, R,G,B (10 and 100 classes: CIFAR's, else ImageNet's)",
        )
    parser.add_argument("--out", required=True, type=Path, help="folder of the run")


def add_build(commands: Any) -> None:
    """`eenet build`."""
    parser = command(
        commands,
        "build",
        "Export, calibrate, profile and fit: a run becomes a bundle.",
        "eenet build runs/mine --out my-bundle && eenet serve --bundle my-bundle",
        _build,
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="of train, attach or import")
    parser.add_argument("--out", required=True, type=Path, help="folder of the bundle")
    parser.add_argument(
        "--name", help="the model's name in requests (default: the bundle folder's)"
    )
    _add_data(parser, required=False, default="that of the training")
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default=DEFAULT_POLICY,
        help="scheduler (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        choices=get_args(Weights),
        default="float32",
        help="how graphs store them; arithmetic stays in single precision (default: %(default)s)",
    )
    parser.add_argument(
        "--prune-vocabulary",
        action="store_true",
        help="keep only the WordPiece tokens that the training texts use",
    )
    parser.add_argument(
        "--torch-weights",
        action="store_true",
        help="store the network too, as it was trained, for serve --backend torch",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the results as one JSON document last"
    )


def _add_data(
    parser: argparse.ArgumentParser, *, required: bool = True, default: str | None = None
) -> None:
    until = "" if default is None else f" (default: {default})"
    parser.add_argument("--dataset", required=required, help=DATASETS + until)
    parser.add_argument("--text-column", help="of a table: a name, or a number from 0 (text)")
    parser.add_argument("--label-column", help="of a table: a name, or a number from 0 (label)")
    parser.add_argument(
        "--calibration-size",
        type=int,
        help="training rows held out (5000, of a small dataset a fifth)",
    )
    parser.add_argument("--image-size", type=int, help="side to which images are brought")


def _add_training(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("--out", required=required, type=Path, help="folder of the run")
    parser.add_argument("--max-tokens", type=int, help="where texts are cut (128)")
    for name, kind, text in (
        ("epochs", int, "passes over the data (20; pretrained encoders: 3, ResNets: 10)"),
        ("batch_size", int, "rows a step (128; encoders: 32; a pretrained ResNet: 64)"),
        ("optimizer", str, "sgd or adamw (sgd; transformers: adamw)"),
        (
            "peak_lr",
            float,
            "highest learning rate (sgd: 0.1, pretrained 0.02; adamw: 5e-5, from scratch 5e-4)",
        ),
        ("weight_decay", float, "of the optimizer (sgd: 5e-4; adamw: 0.01)"),
        ("distill_weight", float, f"how much the last exit teaches ({_default('distill_weight')})"),
        ("seed", int, f"of everything random ({_default('seed')})"),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="train through torch.compile: a minute to start, 15 %% faster",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the reports as one JSON document last"
    )


def _prepare() -> None:
    require_training_extra()
    log_to_stderr("warning")
    logging.getLogger("models").setLevel(logging.INFO)  # what was dropped, held out, resumed


def _default(name: str) -> Any:
    return next(field.default for field in dataclasses.fields(TrainConfig) if field.name == name)


def _train(args: argparse.Namespace) -> None:
    _prepare()
    from server.cli.train import train

    reports = train(args)
    if args.json:
        print(json.dumps([report._asdict() for report in reports]))


def _attach(args: argparse.Namespace) -> None:
    _prepare()
    from server.cli.attach import attach

    reports = attach(args)
    if args.json:
        print(json.dumps([report._asdict() for report in reports]))


def _import(args: argparse.Namespace) -> None:
    _prepare()
    from server.cli.import_run import import_published

    import_published(args)
    print(f"{args.out}: a run of {args.arch}; build it with eenet build {args.out} --dataset ...")


def _build(args: argparse.Namespace) -> None:
    _prepare()
    # The exporter speaks of libraries that are not needed, of its own inner changes, and of names
    # that two inputs of a text's stage share.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
    warnings.filterwarnings("ignore", "# The axis name: .* will not be used", UserWarning)
    from server.cli.run_data import data_of_run
    from server.pipeline.builder import BuildOptions, build_bundle, load_run

    run = load_run(args.folder)
    options = BuildOptions(
        name=args.name or args.out.resolve().name,
        data=data_of_run(args, run.config),
        policy=args.policy,
        weights=args.weights,
        prune_vocabulary=args.prune_vocabulary,
        torch=args.torch_weights,
    )
    built = build_bundle(run, args.out, options, log_step)
    manifest = built.bundle.manifest
    print(f"{built.bundle.folder}: {manifest.num_exits} exits")
    for weights, measured in manifest.measured.items():
        accuracy = " ".join(f"{100 * share:.2f}" for share in measured.accuracy)
        latency = " ".join(f"{ms:.3f}" for ms in measured.latency_ms)
        print(f"{weights}: test accuracy {accuracy} %, latency {latency} ms")
    print(
        f"graphs and network differ by {built.disagreement:.1e} at most; default budget "
        f"{manifest.default_budget_ms} ms"
    )
    print_evaluations(built.evaluations)
    if args.json:
        print(
            json.dumps(
                {
                    "bundle": str(args.out),
                    "exit_accuracy": built.exit_accuracy,
                    "evaluations": [row._asdict() for row in built.evaluations],
                }
            )
        )
