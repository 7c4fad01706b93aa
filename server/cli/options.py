"""Flags that several commands share, and the files and tables that go with them."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.data.dataset import DataConfig
    from models.networks.families import Network
    from models.training.run import RunConfig
    from profiling.evaluation.evaluate import Evaluation
    from server.settings import Settings

DATASETS = (
    "cifar10, cifar100, fashion-mnist, tiny-imagenet, sst2, ag_news or shapes (synthetic masks); a "
    "folder of images train/CLASS/* and test/CLASS/*; a CSV, TSV, JSON, JSONL or Parquet of texts, "
    "or a folder with train.* and test.*; an .npz of encoded images"
)
DATA_FLAGS = (
    "dataset",
    "text_column",
    "label_column",
    "label_separator",
    "calibration_size",
    "calibration_from",
    "certification_size",
    "image_size",
    "skip_damaged",
)
MAX_TOKENS = 128
IMAGENET_SIZE = 224


def numbers(text: str) -> list[float]:
    """Read the numbers of an option, separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers such as 1,2,3.3"
        ) from error


def number_array(text: str) -> NDArray[np.float64]:
    """Read the numbers of an option as an array."""
    import numpy as np

    return np.array(numbers(text))


def add_costs(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --costs."""
    parser.add_argument(
        "--costs",
        type=number_array,
        metavar="MS,MS,...",
        help=f"latency from the start until each exit, rising (default: {default})",
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add --seed."""
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of all random draws (default: %(default)s)"
    )


def add_precision(
    parser: argparse.ArgumentParser, default: str = "the first of its manifest"
) -> None:
    """Add --precision, which chooses one of a bundle's networks."""
    from models.bundle import Precision

    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help=f"which of the bundle's networks (default: {default})",
    )


def add_prior(parser: argparse.ArgumentParser) -> None:
    """Add --prior."""
    parser.add_argument(
        "--prior",
        default="observed",
        metavar="observed|uniform|FILE",
        help="shares of the classes to fit for: those of the calibration rows, equal ones, or a "
        "file: a JSON object of shares by class, or one share per line (default: %(default)s)",
    )


def add_json(parser: argparse.ArgumentParser, document: str) -> None:
    """Add --json, which makes the document all that standard output holds."""
    parser.add_argument(
        "--json",
        action="store_true",
        help=f"print {document} as JSON to standard output, all else to standard error",
    )


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose how a bundle runs; `backend_settings` reads them."""
    from server.settings import Settings

    fields = Settings.model_fields
    parser.add_argument(
        "--backend", default="onnx", help="inference backend: onnx or torch (default: onnx)"
    )
    for name in ("device", "torch_mode"):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=fields[name].default,
            help=f"{fields[name].description} (default: {fields[name].default})",
        )


def backend_settings(args: argparse.Namespace) -> Settings:
    """Settings that run the bundle in `args.folder` on the backend of the flags.

    Raises:
        ValueError: If one is unknown, or the replay backend is asked for.
    """
    from server.settings import Settings

    if args.backend == "replay":
        raise ValueError("the replay backend runs no network; use onnx or torch")
    return Settings(
        bundle=(args.folder,),
        backend=args.backend,
        device=args.device,
        torch_mode=args.torch_mode,
    )


def add_data(
    parser: argparse._ActionsContainer, *, required: bool = True, default: str | None = None
) -> None:
    """Add the flags that choose a dataset."""
    until = "" if default is None else f" (default: {default})"
    parser.add_argument("--dataset", required=required, help=DATASETS + until)
    parser.add_argument(
        "--text-column",
        help="column of the texts in a table: a name, or a number from 0 (text); a,b reads pairs "
        "of texts, a+b joins two columns into one text",
    )
    parser.add_argument(
        "--label-column",
        help="column of the labels in a table: a name, or a number from 0 (label); a,b,c: one "
        "column of 0 and 1 per class, of which a row may have several",
    )
    parser.add_argument(
        "--label-separator",
        metavar="TEXT",
        help="what separates the labels of a row that may have several, as in news|sport",
    )
    parser.add_argument(
        "--calibration-size",
        type=int,
        help="rows held out to fit schedulers to (5000, or a fifth of a small dataset)",
    )
    parser.add_argument(
        "--calibration-from",
        choices=("train", "test"),
        help="where calibration rows are taken from; test: for networks that have seen all "
        "training rows (train)",
    )
    parser.add_argument(
        "--certification-size",
        type=int,
        help="test rows set aside for certificates: nothing is fitted, chosen or reported on "
        "them (0)",
    )
    parser.add_argument("--image-size", type=int, help="resize images to this side length")
    parser.add_argument(
        "--skip-damaged",
        action="store_true",
        default=None,
        help="pass over damaged images, and over rows of a table without text or label",
    )


def add_training(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the flags of a training."""
    from models.training.run import TrainConfig

    defaults = TrainConfig()
    parser.add_argument("--out", required=required, type=Path, help="folder of the run")
    parser.add_argument(
        "--max-tokens", type=int, help="most tokens of a text; the rest is cut (128)"
    )
    for name, kind, text in (
        ("epochs", int, "passes over the data (20; pretrained encoders: 3, ResNets: 10)"),
        ("batch_size", int, "rows per step (128; encoders: 32; a pretrained ResNet: 64)"),
        ("optimizer", str, "sgd or adamw (sgd; transformers: adamw)"),
        (
            "peak_lr",
            float,
            "highest learning rate (sgd: 0.1, pretrained 0.02; adamw: 5e-5, from scratch 5e-4)",
        ),
        ("weight_decay", float, "weight decay of the optimizer (sgd: 5e-4; adamw: 0.01)"),
        (
            "distill_weight",
            float,
            f"weight of distillation from the last exit ({defaults.distill_weight})",
        ),
        ("seed", int, f"seed of all random draws ({defaults.seed})"),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="train through torch.compile: a minute to start, 15 %% faster",
    )
    add_json(parser, "the reports of all epochs")


def data_of(args: argparse.Namespace, **defaults: Any) -> DataConfig:
    """The dataset that the flags choose; `defaults` hold for flags that were not given."""
    from models.data.dataset import DataConfig

    given = {name: getattr(args, name) for name in DATA_FLAGS if getattr(args, name) is not None}
    return DataConfig(**defaults | given)


def data_of_run(args: argparse.Namespace, run: RunConfig) -> DataConfig:
    """The dataset to build a run with: that of its training, except for the flags given.

    Raises:
        ValueError: If the run was imported and no dataset is given, or the flags hold out rows
            that were trained on or that chose the weights.
    """
    if run.data is None and args.dataset is None:
        raise ValueError(
            f"{args.folder} was imported, not trained here; give --dataset, on which to calibrate"
        )
    data = data_of(args, **run.data or {})
    if run.data is not None:
        _check_held_out(args.folder, data, data_of_training=run.data)
    return data


def _check_held_out(run: Path, data: DataConfig, data_of_training: dict[str, Any]) -> None:
    """Refuse to hold out rows that a training has used for something else."""
    size, before = data.calibration_size, data_of_training["calibration_size"]
    held_out_of = data_of_training["calibration_from"]
    if data.calibration_from == "train" and held_out_of == "test":
        raise ValueError(
            f"--calibration-from train would calibrate on rows that {run} was trained on; leave "
            f"it out"
        )
    if data.calibration_from == "train" and size != before and (before is None or size > before):
        raise ValueError(
            f"--calibration-size {size} would calibrate on rows that {run} was trained on; leave "
            f"it out, or give at most the training's own {before or 'share'}"
        )
    certified = data_of_training["certification_size"]
    if held_out_of == "test" and data.certification_size > certified:
        raise ValueError(
            f"--certification-size {data.certification_size} would certify on rows that chose the "
            f"weights of {run}; leave it out, or give at most the training's own {certified}"
        )


def torchvision_resnets() -> dict[str, int]:
    """Number of blocks of each torchvision ResNet, by its name."""
    from models.networks.imagenet_resnet import BLOCKS

    return {f"resnet{depth}": sum(blocks) for depth, blocks in BLOCKS.items()}


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON object of settings.

    Raises:
        ValueError: If the file does not hold one.
    """
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no JSON object; give the settings by their names")
    return settings


def parse_exits(text: str) -> list[int]:
    """Read numbers of blocks or layers, separated by commas.

    Raises:
        ValueError: If the text holds anything else.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"exits {text!r} are not numbers of blocks or layers such as 9,18"
        ) from error


def read_tokenizer(path: Path | None) -> str:
    """Read a tokenizer's JSON from its file, or from the folder that holds it.

    Raises:
        ValueError: If there is no such file.
    """
    from models.bundle import TOKENIZER

    if path is None:
        raise ValueError("a network that reads texts needs --tokenizer, a tokenizer.json")
    file = path / TOKENIZER if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file} does not exist; --tokenizer takes a tokenizer.json or its folder")
    return file.read_text()


def text_input(args: argparse.Namespace, network: Network, tokenizer: str) -> dict[str, Any]:
    """Preprocessing settings of a network that has our own encoder.

    Raises:
        ValueError: If --max-tokens or the tokenizer does not fit the network.
    """
    check_vocabulary(tokenizer, network.settings["vocab_size"])
    most = network.settings["max_position_embeddings"]
    input = {"max_tokens": max_tokens_of(args, "this network", most), "pad_id": 0}
    return input | {"pair": True} if reads_pairs(args) else input


def reads_pairs(args: argparse.Namespace) -> bool:
    """Whether --text-column names two columns that are a pair of texts."""
    return "," in (getattr(args, "text_column", None) or "")


def separator_of(tokenizer: str) -> int | None:
    """The token that a tokenizer puts after the first text of a pair; None if it puts none.

    Args:
        tokenizer: Content of its `tokenizer.json`.
    """
    from tokenizers import Tokenizer

    pair = Tokenizer.from_str(tokenizer).encode("a", "b")
    second = next((place for place, segment in enumerate(pair.type_ids) if segment), 0)
    is_special = second > 0 and pair.special_tokens_mask[second - 1] == 1
    return int(pair.ids[second - 1]) if is_special else None


def max_tokens_of(args: argparse.Namespace, network: str, most: int) -> int:
    """Length at which texts are cut: --max-tokens, else 128 or the network's most.

    Raises:
        ValueError: If the network does not take so many tokens.
    """
    wanted: int = min(MAX_TOKENS, most) if args.max_tokens is None else args.max_tokens
    if not 2 < wanted <= most:
        raise ValueError(f"--max-tokens is {wanted}; {network} takes 3 to {most}")
    return wanted


def check_vocabulary(tokenizer: str, vocab_size: int) -> None:
    """Refuse a tokenizer that has tokens which the network does not know.

    Raises:
        ValueError: If it has, or if the JSON is no tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        tokens = Tokenizer.from_str(tokenizer).get_vocab_size()
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"the tokenizer.json is no tokenizer: {error}") from error
    if tokens > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokens} tokens, the network a vocab_size of {vocab_size}; give "
            f"the tokenizer that belongs to it"
        )


def imagenet_input() -> dict[str, Any]:
    """Normalisation of images where nothing else is known."""
    from models.preprocess import IMAGENET_MEAN, IMAGENET_STD

    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def print_evaluations(rows: Sequence[Evaluation]) -> None:
    """Print a table of a scheduler's results on the test predictions."""
    print("budget ms   cost ms   accuracy %   exit rates")
    for row in rows:
        rates = " ".join(f"{rate:.2f}" for rate in row.exit_rates)
        print(f"{row.budget:9.3f} {row.test_cost:9.3f} {100 * row.test_accuracy:12.2f}   {rates}")


def prepare_training() -> None:
    """Check that the training extra is installed, and log the notes of training.

    Raises:
        ValueError: If the extra is missing; the message says how to install it.
    """
    require_training_extra()
    log_to_stderr("warning")
    # Rows dropped or held out, and resumed runs.
    logging.getLogger("models").setLevel(logging.INFO)


def require_training_extra() -> None:
    """Check that torch and the exporter are installed.

    Raises:
        ValueError: If one is missing; the message says how to install it.
    """
    try:
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed; commands that train, build, fit or evaluate need it: "
            f"run make install"
        ) from error


def log_to_stderr(level: str) -> None:
    """Log lines of a level and above to standard error."""
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
