"""Turns a run into a bundle: export, then record, profile and fit each precision."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer

from models.backend import State
from models.bundle import (
    CARD,
    MANIFEST,
    TOKENIZER,
    Bundle,
    ImageInput,
    Name,
    Precision,
    TextInput,
    write_manifest,
)
from models.data.dataset import DataConfig, Dataset
from models.data.load import load_dataset
from models.export.int8 import check_rows
from models.export.onnx_graphs import Graphs
from models.export.torch_weights import store_network
from models.networks.fcn import coarse_labels
from models.preprocess import ImagePreprocessor, TextPreprocessor
from models.training.class_match import match_classes, rename
from models.training.run import RunConfig
from models.training.vocabulary import prune_vocabulary
from profiling.evaluation.evaluate import Evaluation
from profiling.recording import first_rows, texts_of
from scheduler.fitting.fit import MIN_ROWS
from scheduler.fitting.prior import Prior
from server.pipeline.fitting import BuiltVariant
from server.pipeline.label_thresholds import choose_thresholds
from server.pipeline.model_card import model_card
from server.pipeline.precisions import PrecisionChoice, choose_precisions
from server.pipeline.priors import OBSERVED, read_prior
from server.pipeline.runs import OnnxRun, OwnRun, Run, TorchRun
from server.pipeline.runs import load_run as load_run
from server.pipeline.schedulers import SIDE_BY_SIDE, FitKind, warn_of_imbalance
from server.pipeline.variants import VariantBuilder

PARITY_ROWS = 64
PARITY_LIMIT = 1e-4
LENGTH_STEP = 8


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build.

    Attributes:
        name: The model's name in requests.
        data: Dataset with the calibration and the test set.
        policy: The policy that a server starts with, one of `scheduler.policies.POLICIES`. Those of
            `SIDE_BY_SIDE` are fitted in any case.
        prior: What `read_prior` takes.
        precision: Number format to compute in, beside `float32`; `auto`: the one with the best
            frontier on this machine.
        max_precision_loss: Accuracy that an exit may lose by it; a precision that loses more is
            left out.
        prune_vocabulary: Keep only the tokens that the training texts use.
        torch: Also store the network itself, for the torch backend.
        licence: Identifier of the licence for the model card, as the Hugging Face hub writes it.
    """

    name: str
    data: DataConfig
    policy: str
    prior: str = OBSERVED
    precision: PrecisionChoice = "float32"
    max_precision_loss: float = 0.005
    prune_vocabulary: bool = False
    torch: bool = False
    licence: str | None = None

    def __post_init__(self) -> None:
        try:
            TypeAdapter(Name).validate_python(self.name)
        except ValidationError as error:
            raise ValueError(
                f"{self.name!r} is not a valid name of a model; give a --name of at most 64 "
                f"letters, digits, '.', '_' and '-'"
            ) from error
        if not 0 <= self.max_precision_loss <= 1:
            raise ValueError(
                f"--max-precision-loss is {self.max_precision_loss:g}; give a share of accuracy "
                f"from 0 to 1, such as 0.005"
            )


class BuildResult(NamedTuple):
    """A new bundle.

    Attributes:
        bundle: The bundle.
        disagreement: Largest difference of a logit between the network and its exported graphs.
        evaluations: Results on the test rows, of every precision in the bundle's order.
        left_out: Why a precision that was tried is not in the bundle, one sentence each.
    """

    bundle: Bundle
    disagreement: float
    evaluations: dict[Precision, list[Evaluation]]
    left_out: list[str]


def build_bundle(
    run: Run, out: Path, options: BuildOptions, log_step: Callable[[str], None]
) -> BuildResult:
    """Build a bundle; an older one at `out` stays until the new one is complete.

    Args:
        run: The network; pruning its vocabulary changes it.
        out: The bundle's folder.
        options: Options of the build.
        log_step: Called with each step as it begins.

    Raises:
        ValueError: If `out` holds anything but a bundle, the dataset does not fit, or the graphs
            differ from the network.
    """
    out = out.resolve()
    if out.is_file() or (out.exists() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise ValueError(f"{out} is not a bundle; give an empty or new folder")
    if isinstance(run, OnnxRun) and (options.torch or options.prune_vocabulary):
        flag = "--torch-weights" if options.torch else "--prune-vocabulary"
        raise ValueError(f"{run.folder} holds ONNX graphs, not a torch network; leave out {flag}")
    if isinstance(run, OwnRun) and (options.torch or options.prune_vocabulary):
        flag = "--torch-weights" if options.torch else "--prune-vocabulary"
        raise ValueError(f"{flag} is for networks of this package, not for --model; leave it out")
    if options.prune_vocabulary and not (run.folder / TOKENIZER).is_file():
        raise ValueError(
            f"{run.folder} reads no texts, so there is no vocabulary to prune; leave out "
            f"--prune-vocabulary"
        )
    log_step("reading the dataset")
    named = run.config.settings.get("backbone", {}).get("id2label") or {}
    data = in_order(load_dataset(options.data, run.images), run.config.classes, named)
    _check_data(run, data)
    prior = read_prior(options.prior, data.classes)
    if prior is not None:
        prior.row_weights(data.calibration.labels)  # refuses before the work
    if options.precision == "int8":
        check_rows(len(data.train.labels))
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        built = _fill(run, part, data, options, prior, log_step)
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return built._replace(bundle=Bundle(out, built.bundle.manifest))


def in_order(
    data: Dataset, classes: tuple[str, ...], id2label: Mapping[str, str] | None = None
) -> Dataset:
    """The dataset with labels in the network's order of classes, if the classes are the same.

    Args:
        data: The dataset.
        classes: The network's.
        id2label: Names of the backbone's classes by their number, which the dataset may give.
    """
    if id2label and set(data.classes) != set(classes):
        renamed = rename(data, match_classes(data.classes, id2label).names)
        data = renamed if set(renamed.classes) == set(classes) else data
    if data.classes == classes or sorted(data.classes) != sorted(classes):
        return data
    places = np.array([classes.index(name) for name in data.classes])
    return data.map_labels(classes, lambda labels: places[labels])


def _check_data(run: Run, data: Dataset) -> None:
    if run.config.label_sets != (data.task != "segmentation" and data.test.labels.ndim > 1):
        several = "several classes" if run.config.label_sets else "one class"
        raise ValueError(
            f"the run was trained on rows of {several}, the dataset's are not; give the same "
            f"dataset, --label-column and --label-separator"
        )
    if data.task != run.task:
        raise ValueError(f"the dataset is of the task {data.task}, but the run is of {run.task}")
    if run.config.classes and data.classes != run.config.classes:
        raise ValueError(
            f"the dataset has the classes {data.classes}, but the run {run.config.classes}; give "
            f"the same dataset"
        )
    if run.num_classes not in (None, len(data.classes)):
        raise ValueError(
            f"the dataset has {len(data.classes)} classes, the network {run.num_classes}; give "
            f"the dataset that it was trained on"
        )
    if len(data.calibration.labels) < MIN_ROWS:
        raise ValueError(
            f"there are {len(data.calibration.labels)} calibration rows; give a "
            f"--calibration-size of {MIN_ROWS} or more, better a thousand"
        )


def _fill(
    run: Run,
    folder: Path,
    data: Dataset,
    options: BuildOptions,
    prior: Prior | None,
    log_step: Callable[[str], None],
) -> BuildResult:
    if data.task == "text":
        _write_tokenizer(run, folder, data, options)
    preprocess = _preprocessor(run, folder, data)
    if data.task == "segmentation":
        data = data.map_labels(data.classes, coarse_labels)
    thresholds = None
    if run.config.label_sets:
        log_step("choosing the thresholds of the labels")
        assert isinstance(run, TorchRun), "given graphs have one label a row"
        thresholds = choose_thresholds(run.model, preprocess, data.calibration)
    log_step("exporting one graph per stage and head")
    graphs = run.graphs(preprocess.example)
    disagreement = _check_parity(run, graphs, first_rows(preprocess, data.test, PARITY_ROWS))
    costs_ms = None if run.config.costs_ms is None else np.array(run.config.costs_ms)
    builder = VariantBuilder(
        folder,
        graphs,
        data,
        preprocess,
        options.policy,
        prior,
        costs_ms,
        options.data.seed,
        log_step,
        run.config.label_sets,
    )
    built = choose_precisions(builder, options.precision, options.max_precision_loss)
    variants = [builder.add_schedulers(variant, SIDE_BY_SIDE) for variant in built.variants]
    if prior is None:
        warn_of_imbalance(FitKind(options.policy), variants[0].recorded.calibration, data.classes)
    bundle = write_manifest(
        folder,
        name=options.name,
        version="1",
        task=data.task,
        classes=data.classes,
        num_exits=run.num_exits,
        thresholds=thresholds,
        inputs={"text" if data.task == "text" else "image": _described(preprocess)},
        precisions={variant.precision: variant.entry for variant in variants},
        trained=built.trained,
        network=_stored_network(run, folder, preprocess) if options.torch else None,
        training=_training(run.config, options.data, variants[0]),
    )
    (folder / CARD).write_text(model_card(bundle, options.licence))
    evaluations = {variant.precision: variant.evaluations for variant in variants}
    return BuildResult(bundle, disagreement, evaluations, built.left_out)


def _check_parity(run: Run, graphs: Graphs, few: State) -> float:
    """Compare the exported graphs with the network.

    Raises:
        ValueError: If they differ.
    """
    disagreement = run.disagreement(graphs, few)
    if disagreement > PARITY_LIMIT:
        raise ValueError(
            f"the exported graphs differ from the network by {disagreement:.2g} on real inputs, "
            f"over {PARITY_LIMIT}"
        )
    return disagreement


def _stored_network(
    run: Run, folder: Path, preprocess: ImagePreprocessor | TextPreprocessor
) -> dict[str, Any]:
    assert isinstance(run, TorchRun), "checked before the work"
    pad_id = preprocess.pad_id if isinstance(preprocess, TextPreprocessor) else None
    return store_network(run.model, run.config, folder, pad_id)


def _write_tokenizer(run: Run, folder: Path, data: Dataset, options: BuildOptions) -> None:
    source = run.folder / TOKENIZER
    if not source.is_file():
        raise ValueError(f"{source} does not exist; a run that reads texts needs its tokenizer")
    if not options.prune_vocabulary:
        shutil.copyfile(source, folder / TOKENIZER)
        return
    texts = [text for text in texts_of(data.train) if isinstance(text, str)]
    if len(texts) < len(data.train.labels):
        raise ValueError("--prune-vocabulary takes no pairs of texts; leave it out")
    assert isinstance(run, TorchRun), "checked before the work"
    pruned = prune_vocabulary(run.model, source, texts)
    (folder / TOKENIZER).write_text(pruned)


def _pad_id(run: Run, tokenizer: Path) -> int:
    """The id of the padding token in a tokenizer whose vocabulary may be pruned."""
    before = Tokenizer.from_file(str(run.folder / TOKENIZER))
    token = before.id_to_token(run.config.input["pad_id"])
    after = Tokenizer.from_file(str(tokenizer))
    pad_id = None if token is None else after.token_to_id(token)
    if pad_id is None:
        raise ValueError(
            f"pruning dropped the padding token {token!r}; build without --prune-vocabulary"
        )
    return pad_id


def _preprocessor(run: Run, folder: Path, data: Dataset) -> ImagePreprocessor | TextPreprocessor:
    """The preprocessing of the bundle; a text's typical length is the calibration set's median."""
    settings = run.config.input
    if run.images is not None:
        return run.images
    if data.task != "text":
        height, width = np.asarray(data.test.inputs[:1]).shape[1:3]
        fit: Literal["cover", "stretch"] = "stretch" if data.task == "segmentation" else "cover"
        return ImagePreprocessor(height, width, **settings, fit=fit)
    length_step = settings.get("length_step", LENGTH_STEP)
    preprocess = TextPreprocessor(
        folder / TOKENIZER,
        max_tokens=settings["max_tokens"],
        pad_id=_pad_id(run, folder / TOKENIZER),
        pair=settings.get("pair", False),
        length_step=length_step,
        typical_tokens=length_step,
    )
    widths = [preprocess(text).state[0].shape[1] for text in texts_of(data.calibration)]
    return replace(preprocess, typical_tokens=int(np.median(widths)))


def _described(preprocess: ImagePreprocessor | TextPreprocessor) -> dict[str, Any]:
    """The preprocessing as fields of the manifest."""
    names = (
        TextInput.model_fields
        if isinstance(preprocess, TextPreprocessor)
        else (ImageInput.model_fields)
    )
    kind = "text" if isinstance(preprocess, TextPreprocessor) else "image"
    return {"kind": kind} | {name: getattr(preprocess, name) for name in names if name != "kind"}


def _place_free(start: str) -> str:
    """A hub's name, or the last part of a path: a bundle must not name folders of this machine."""
    return Path(start).name if Path(start).exists() else start


def _training(config: RunConfig, data: DataConfig, best: BuiltVariant) -> dict[str, Any]:
    """Origin and accuracy of the network, for people."""
    return {
        "arch": config.arch,
        "settings": config.settings,
        "start": None if config.start is None else _place_free(config.start),
        "epochs": None if config.training is None else config.training.epochs,
        "dataset": Path(data.dataset).stem,
        "calibration_from": data.calibration_from,
        "seed": data.seed,
        "stratified": data.stratified,
        "certification_size": data.certification_size,
        "calibration_accuracy": best.recorded.calibration.correct.mean(0).round(4).tolist(),
        "test_accuracy": list(best.measured.accuracy),
    }
