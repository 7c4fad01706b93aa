"""Joins bundles into a cascade: one bundle whose exits are those of several networks."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from models.bundle import (
    KNOWN_ANSWERS,
    MANIFEST,
    TOKENIZER,
    Bundle,
    CascadeMember,
    Name,
    Precision,
    Variant,
    graph_files,
    load_bundle,
    tokenizer_file,
    write_manifest,
)
from models.data.dataset import DataConfig
from models.export.class_order import reorder_classes
from models.known_answers import (
    KnownAnswers,
    load_known_answers,
    record_known_answers,
    save_known_answers,
)
from models.preprocess import ImagePreprocessor
from models.runtime.cascade_backend import open_cascade
from models.runtime.onnx_backend import OnnxBackend
from profiling.calibration import Predictions, Recorded
from profiling.evaluation.evaluate import Evaluation
from profiling.latency import measure_latency
from scheduler.fitting.prior import Prior
from server.pipeline.cascade_rows import shared_rows
from server.pipeline.fitting import BuiltVariant, VariantFitter
from server.pipeline.priors import OBSERVED, read_prior
from server.pipeline.schedulers import SIDE_BY_SIDE

MAX_PIXELS = ImagePreprocessor.max_pixels


@dataclass(frozen=True)
class CascadeOptions:
    """Options of a cascade.

    Attributes:
        name: The model's name in requests.
        policy: The policy that a server starts with, one of `scheduler.policies.POLICIES`.
        data: Dataset to run both networks on; None: the bundles' recorded predictions.
        prior: What `read_prior` takes.
        seed: Seed of the fits.
    """

    name: str
    policy: str
    data: DataConfig | None = None
    prior: str = OBSERVED
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            TypeAdapter(Name).validate_python(self.name)
        except ValidationError as error:
            raise ValueError(
                f"{self.name!r} is not a valid name of a model; give a --name of at most 64 "
                f"letters, digits, '.', '_' and '-'"
            ) from error


class CascadeResult(NamedTuple):
    """A new cascade.

    Attributes:
        bundle: The bundle.
        evaluations: Results on the test rows, of every precision.
        left_out: One sentence for each thing that was left out.
    """

    bundle: Bundle
    evaluations: dict[Precision, list[Evaluation]]
    left_out: list[str]


class Kept(NamedTuple):
    """What a cascade keeps of one bundle.

    Attributes:
        bundle: The bundle.
        exits: How many of its exits, from the first on.
        order: For each class of the cascade, its index in the bundle.
        input: The cascade's input that it reads.
    """

    bundle: Bundle
    exits: int
    order: list[int]
    input: str


def join_bundles(
    folders: Sequence[Path], out: Path, options: CascadeOptions, log_step: Callable[[str], None]
) -> CascadeResult:
    """Join bundles into a cascade; an older bundle at `out` stays until the new one is complete.

    Exits after the one that is most often right on the calibration rows are left out, so that the
    last exit is the reference of all promises and audits, as in any bundle.

    Args:
        folders: The bundles, from the cheapest network to the most expensive.
        out: The cascade's folder.
        options: Options of the cascade.
        log_step: Called with each step as it begins.

    Raises:
        ValueError: If the bundles do not fit together, or no later network is better than the
            first.
    """
    out = out.resolve()
    if out.is_file() or (out.exists() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise ValueError(f"{out} is not a bundle; give an empty or new folder")
    if out in [folder.resolve() for folder in folders]:
        raise ValueError(f"{out} is one of the bundles to join; give a folder of its own")
    bundles = [load_bundle(folder) for folder in folders]
    check_members(bundles)
    precisions = _shared_precisions(bundles)
    classes = bundles[0].manifest.classes
    prior = read_prior(options.prior, classes)
    rows = {
        precision: shared_rows(
            [bundle.variant(precision) for bundle in bundles], options.data, log_step
        )
        for precision in precisions
    }
    kept, left_out = _keep_to_best(bundles, rows[precisions[0]].calibration)
    left_out += _other_precisions(bundles, precisions)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        bundle, evaluations = _fill(part, kept, rows, options, prior, log_step)
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return CascadeResult(Bundle(out, bundle.manifest), evaluations, left_out)


def check_members(bundles: Sequence[Bundle]) -> None:
    """Check that bundles can be joined.

    Raises:
        ValueError: If there is only one, or they differ in task or classes.
    """
    if len(bundles) < 2:
        raise ValueError("a cascade joins two bundles or more; name another one")
    first = bundles[0]
    for bundle in bundles:
        if bundle.manifest.cascade:
            raise ValueError(
                f"{bundle.folder} is a cascade itself; name the bundles it was made of"
            )
        if bundle.manifest.task == "segmentation":
            raise ValueError(f"{bundle.folder} segments images; a cascade joins classifiers")
    for bundle in bundles[1:]:
        if bundle.manifest.task != first.manifest.task:
            raise ValueError(
                f"{first.folder} is of the task {first.manifest.task}, {bundle.folder} of "
                f"{bundle.manifest.task}; join bundles of one task"
            )
        _check_classes(first, bundle)


def _check_classes(first: Bundle, other: Bundle) -> None:
    known, found = first.manifest.classes, other.manifest.classes
    missing = [repr(name) for name in known if name not in found]
    further = [repr(name) for name in found if name not in known]
    if missing or further:
        lacks = [f"lacks {', '.join(missing)}"] if missing else []
        has = [f"has {', '.join(further)}"] if further else []
        raise ValueError(
            f"{other.folder} has other classes than {first.folder}: it "
            f"{' and '.join(lacks + has)}; join bundles with the same class names, in any order"
        )


def _shared_precisions(bundles: Sequence[Bundle]) -> list[Precision]:
    shared = [
        precision
        for precision in bundles[0].precisions
        if all(precision in bundle.precisions for bundle in bundles)
    ]
    if not shared:
        held = "; ".join(f"{each.folder} holds {', '.join(each.precisions)}" for each in bundles)
        raise ValueError(
            f"the bundles have no precision in common: {held}; build one of them again with "
            f"--precision"
        )
    return shared


def _other_precisions(bundles: Sequence[Bundle], shared: Sequence[Precision]) -> list[str]:
    return [
        f"{precision} is left out: not all of the bundles hold it"
        for precision in dict.fromkeys(each for bundle in bundles for each in bundle.precisions)
        if precision not in shared
    ]


def _keep_to_best(
    bundles: Sequence[Bundle], calibration: Predictions
) -> tuple[list[Kept], list[str]]:
    """Keep the exits up to the best one; say which are left out.

    Raises:
        ValueError: If the best one is in the first bundle.
    """
    accuracy = calibration.correct.mean(0)
    best = int(accuracy.argmax())
    ends = list(accumulate(bundle.manifest.num_exits for bundle in bundles))
    starts = [0, *ends[:-1]]
    if best < ends[0]:
        raise ValueError(
            f"no exit of {', '.join(str(each.folder) for each in bundles[1:])} is more often right "
            f"on the calibration rows than {bundles[0].folder}, which is on "
            f"{100 * accuracy[best]:.2f} %; serve that bundle alone"
        )
    names = _input_names(bundles)
    classes = bundles[0].manifest.classes
    kept = [
        Kept(
            bundle,
            min(best + 1, end) - start,
            [bundle.manifest.classes.index(name) for name in classes],
            name,
        )
        for bundle, start, end, name in zip(bundles, starts, ends, names, strict=True)
        if start <= best
    ]
    if best + 1 == len(accuracy):
        return kept, []
    after = ", ".join(f"{100 * share:.2f}" for share in accuracy[best + 1 :])
    return kept, [
        f"the exits after {best} are left out: it is right on {100 * accuracy[best]:.2f} % of the "
        f"calibration rows, those after it on {after} %"
    ]


def _input_names(bundles: Sequence[Bundle]) -> list[str]:
    """Name the input that each network reads; those that read alike share one."""
    names: list[str] = []
    known: dict[Any, str] = {}
    kind = bundles[0].manifest.input.kind
    for place, bundle in enumerate(bundles):
        read: Any = bundle.manifest.input
        if bundle.manifest.task == "text":
            # The length of the example is no part of how a text is read.
            settings = read.model_dump(exclude={"typical_tokens"})
            read = (bundle.folder / TOKENIZER).read_bytes(), tuple(settings.items())
        names.append(known.setdefault(read, kind if not place else f"{kind}-{place + 1}"))
    return names


def _fill(
    folder: Path,
    kept: Sequence[Kept],
    rows: dict[Precision, Recorded],
    options: CascadeOptions,
    prior: Prior | None,
    log_step: Callable[[str], None],
) -> tuple[Bundle, dict[Precision, list[Evaluation]]]:
    readers = {each.input: each.bundle for each in reversed(kept)}
    inputs = {name: readers[name] for name in dict.fromkeys(each.input for each in kept)}
    for place, (name, bundle) in enumerate(inputs.items()):
        if bundle.manifest.task == "text":
            source = bundle.folder / TOKENIZER
            shutil.copyfile(source, folder / tokenizer_file(name, first=not place))
    starts = [0, *accumulate(each.exits for each in kept)]
    described: dict[str, Any] = {
        "name": options.name,
        "version": "1",
        "task": kept[0].bundle.manifest.task,
        "classes": kept[0].bundle.manifest.classes,
        "num_exits": starts[-1],
        "inputs": {name: bundle.manifest.input.model_dump() for name, bundle in inputs.items()},
        "cascade": tuple(
            CascadeMember(
                name=each.bundle.manifest.name,
                version=each.bundle.manifest.version,
                first_stage=start,
                input=each.input,
            )
            for each, start in zip(kept, starts, strict=False)
        ),
    }
    fitter = VariantFitter(folder, options.policy, prior, options.seed, log_step)
    built = [
        _build(folder, precision, kept, recorded, described, fitter)
        for precision, recorded in rows.items()
    ]
    built = [fitter.add_schedulers(variant, SIDE_BY_SIDE) for variant in built]
    precisions = {variant.precision: variant.entry for variant in built}
    training = _training(kept, built[0], options.data)
    bundle = write_manifest(folder, **described, precisions=precisions, training=training)
    return bundle, {variant.precision: variant.evaluations for variant in built}


def _build(
    folder: Path,
    precision: Precision,
    kept: Sequence[Kept],
    recorded: Recorded,
    described: dict[str, Any],
    fitter: VariantFitter,
) -> BuiltVariant:
    """Write the graphs of one precision, measure them, and fit its policy."""
    stages, heads = graph_files(folder / precision, described["num_exits"])
    variants = [each.bundle.variant(precision) for each in kept]
    _copy_graphs(kept, variants, stages, heads)
    known = _known_answers(kept, variants, stages, heads)
    if known is not None:
        save_known_answers(known, folder / precision / KNOWN_ANSWERS)
    independent = all(variant.entry.row_independent for variant in variants)
    recorded = first_exits(recorded, described["num_exits"])
    fitter.log_step(f"{precision}: profiling this machine")
    # The manifest tells how to open a cascade; that of the finished bundle replaces it.
    draft = write_manifest(folder, **described, precisions=_drafted(precision), training={})
    backend = open_cascade(
        draft.variant(precision), lambda s, h: OnnxBackend(s, h, row_independent=independent)
    )
    profile = measure_latency(backend, draft.preprocessor(MAX_PIXELS).example)
    method = {
        each.bundle.manifest.name: variant.entry.method
        for each, variant in zip(kept, variants, strict=True)
    }
    return fitter.fit(precision, recorded, profile, method, row_independent=independent)


def _drafted(precision: Precision) -> dict[str, Any]:
    entry = {"folder": precision, "predictions": "", "schedulers": {"none": ""}, "policy": "none"}
    return {precision: entry | {"default_budget_ms": None}}


def _copy_graphs(
    kept: Sequence[Kept], variants: Sequence[Variant], stages: Sequence[Path], heads: Sequence[Path]
) -> None:
    """Copy stages and heads; heads answer in the cascade's order of classes."""
    for path in (stages[0], heads[0]):
        path.parent.mkdir(parents=True, exist_ok=True)
    exit = 0
    for each, variant in zip(kept, variants, strict=True):
        graphs = zip(variant.stage_files, variant.head_files, strict=True)
        for stage, head in list(graphs)[: each.exits]:
            shutil.copyfile(stage, stages[exit])
            if each.order == sorted(each.order):
                shutil.copyfile(head, heads[exit])
            else:
                reorder_classes(head, heads[exit], each.order)
            exit += 1


def _known_answers(
    kept: Sequence[Kept], variants: Sequence[Variant], stages: Sequence[Path], heads: Sequence[Path]
) -> KnownAnswers | None:
    """Join the known inputs of all networks, and record the answers; None: not all have some.

    A network's answers depend on its own input alone, so the rows of two networks need not be of
    the same image or text.
    """
    files = [variant.known_answers for variant in variants]
    known = [load_known_answers(file) for file in files if file is not None]
    if len(known) < len(files):
        return None
    rows = min(len(each.inputs[0]) for each in known)
    inputs: dict[str, Any] = {}
    for each, answers in zip(kept, known, strict=True):
        inputs.setdefault(each.input, tuple(array[:rows] for array in answers.inputs))
    exit, log_probs = 0, list[NDArray[np.float32]]()
    for each in kept:
        graphs = slice(exit, exit + each.exits)
        own = record_known_answers(stages[graphs], heads[graphs], inputs[each.input])
        log_probs.append(own.log_probs)
        exit += each.exits
    joined = tuple(array for state in inputs.values() for array in state)
    return KnownAnswers(joined, np.concatenate(log_probs))


def first_exits(recorded: Recorded, count: int) -> Recorded:
    """Return the predictions of the first exits alone."""

    def cut(rows: Predictions) -> Predictions:
        return rows._replace(log_probs=rows.log_probs[:count])

    held_out = None if recorded.certification is None else cut(recorded.certification)
    return Recorded(cut(recorded.calibration), held_out, cut(recorded.test))


def _training(kept: Sequence[Kept], best: BuiltVariant, data: DataConfig | None) -> dict[str, Any]:
    """Origin and accuracy of the cascade, for people."""
    own = kept[0].bundle.manifest.training
    rows = {name: own.get(name) for name in ("dataset", "calibration_from", "seed", "stratified")}
    if data is not None:
        rows = {
            "dataset": Path(data.dataset).stem,
            "calibration_from": data.calibration_from,
            "seed": data.seed,
            "stratified": data.stratified,
        }
    return {
        **rows,
        "networks": {each.bundle.manifest.name: each.bundle.manifest.training for each in kept},
        "calibration_accuracy": best.recorded.calibration.correct.mean(0).round(4).tolist(),
        "test_accuracy": list(best.measured.accuracy),
    }
