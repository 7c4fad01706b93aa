"""Turns multi-exit classifiers that come as ONNX files into runs."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from models.backend import State
from models.data.dataset import DataConfig, Dataset
from models.data.load import load_dataset
from models.export.onnx_graphs import Graphs
from models.onnx_import.batch_axis import fixed_rows, forget_shapes, free_rows
from models.onnx_import.folders import read_numbered, take_state
from models.onnx_import.graph import ancestors, keep_outputs
from models.onnx_import.outputs import (
    Scale,
    as_head,
    log_softmax,
    order_of_classes,
    scale_of,
)
from models.onnx_import.parts import Whole, cut_exits, describe
from models.onnx_import.reading import ReadModel, read_model
from models.onnx_import.separators import work_of
from models.training.run import RunConfig
from profiling.recording import record_split
from server.pipeline.onnx_source import (
    HALF_LIMIT,
    LIMIT,
    FirstGraph,
    Reader,
    adapt,
    answers_as_given,
    few_rows,
    in_order_of,
    open_in_memory,
    run_graph,
)
from server.pipeline.runs import ONNX, save_onnx_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnnxOptions:
    """Where a network comes from, and how it is read.

    Attributes:
        preprocessing: As `adapt` takes it.
        data: The dataset.
        class_names: The network's classes in its own order; None: the dataset's order.
        out: Folder of the run.
    """

    preprocessing: Path | None
    data: DataConfig
    class_names: tuple[str, ...] | None
    out: Path


class ImportReport(NamedTuple):
    """An imported network.

    Attributes:
        exits: Name of each exit's output, in the order of their work.
        scale: What the outputs hold.
        disagreement: Largest difference of a log-probability between the files and the stages.
        test_accuracy: Of each exit on the test rows, (K,).
        order: The order of classes that the answers follow, if it is not the dataset's.
    """

    exits: list[str]
    scale: Scale
    disagreement: float
    test_accuracy: list[float]
    order: tuple[str, ...] | None


class _Cut(NamedTuple):
    """A network in stages, with one output per exit as the file has it.

    Attributes:
        first: What reads requests.
        stages: K stages.
        tails: K parts that make one output of a state.
        exits: Names of the outputs.
        chains: For each exit the given graphs that make its output, and its place there.
    """

    first: FirstGraph
    stages: list[ModelProto]
    tails: list[ModelProto]
    exits: list[str]
    chains: list[tuple[list[ModelProto], int]]


def import_file(
    path: Path,
    options: OnnxOptions,
    log_step: Callable[[str], None],
    outputs: Collection[str] | None = None,
) -> ImportReport:
    """Import one file whose outputs are the exits.

    Args:
        path: The file.
        options: Dataset, preprocessing and the folder of the run.
        log_step: Called with each step as it begins.
        outputs: Outputs that are used, those of scores among them; None: all.

    Raises:
        ValueError: If it is no such file, cannot be cut, or does not fit the dataset.
    """
    log_step(f"checking {path}")
    return _finish(_cut_file(path, options.preprocessing, outputs), path.name, options, log_step)


def import_folders(
    stages: Path, heads: Path, options: OnnxOptions, log_step: Callable[[str], None]
) -> ImportReport:
    """Import stages and heads in files of their own.

    Raises:
        ValueError: If they do not fit together, or not the dataset.
    """
    log_step(f"checking {stages} and {heads}")
    cut = _read_folders(stages, heads, options.preprocessing)
    return _finish(cut, stages.resolve().parent.name, options, log_step)


def _cut_file(path: Path, preprocessing: Path | None, wanted: Collection[str] | None) -> _Cut:
    first = adapt(read_model(path), path, preprocessing)
    if wanted is not None:
        keep_outputs(first.model, wanted)
    whole = first.checked()
    exits = _exit_outputs(whole, path)
    if len(exits) < 2:
        raise ValueError(
            f"{path} has the output {exits[0]!r} only; eenet attach --onnx {path} adds exits"
        )
    parts = cut_exits(whole, exits)
    tails = [tail for tail in parts.tails if tail is not None]
    outputs = [value.name for value in first.given.graph.output]
    chains = [([first.given], outputs.index(name)) for name in exits]
    return _Cut(first, parts.stages, tails, exits, chains)


def _exit_outputs(whole: Whole, path: Path) -> list[str]:
    """Name the outputs that are scores of classes, those of the least work first.

    Raises:
        ValueError: If there are none, or they differ in their number of classes.
    """
    outputs = [value.name for value in whole.model.graph.output]
    found = run_graph(whole.model, whole.large)
    widths = {
        name: int(np.prod(values.shape[1:]))
        for name, values in zip(outputs, found, strict=True)
        if values.ndim >= 2 and np.prod(values.shape[2:]) == 1 and values.dtype.kind == "f"
    }
    for name in outputs:
        if name not in widths:
            log.warning("the output %r is no row of scores, and is left out", name)
    if not widths:
        raise ValueError(f"{path} has no output of scores, (rows, classes); export the logits")
    if len(set(widths.values())) > 1:
        described = ", ".join(f"{name!r} {width}" for name, width in widths.items())
        raise ValueError(
            f"the outputs of {path} differ in their classes: {described}; all exits of a network "
            f"must have the same classes"
        )
    work = {
        name: (work_of(whole.model, nodes), len(nodes))
        for name in widths
        for nodes in [ancestors(whole.model, [name])]
    }
    return sorted(widths, key=work.__getitem__)


def _read_folders(stages: Path, heads: Path, preprocessing: Path | None) -> _Cut:
    read_stages, read_heads = read_numbered(stages), read_numbered(heads)
    if len(read_stages) != len(read_heads):
        raise ValueError(
            f"{stages} holds {len(read_stages)} stages, {heads} {len(read_heads)} heads; every "
            f"stage needs a head"
        )
    path = min(stages.glob("*.onnx"))
    first = adapt(read_stages[0], path, preprocessing)
    small, large = first.reader.two_inputs()
    parts, tails, state = [first.model], list[ModelProto](), list[ValueInfoProto]()
    given, chains = [first.given], list[tuple[list[ModelProto], int]]()
    for k, head in enumerate(read_heads):
        name = f"{stages}, stage {k}"
        if k:
            _take(read_stages[k], state, name)
            parts.append(read_stages[k].model)
            given.append(read_stages[k].given)
        small, large = (_run_named(parts[k], each, name) for each in (small, large))
        names = [value.name for value in parts[k].graph.output]
        state = [describe(*each) for each in zip(names, small, large, strict=True)]
        del parts[k].graph.output[:]
        parts[k].graph.output.extend(state)
        _take(head, state, f"{heads}, head {k}")
        for each in (small, large):
            _run_named(head.model, each, f"{heads}, head {k}")
        _keep_scores(head.model)
        tails.append(head.model)
        chains.append(([*given, head.given], 0))
    exits = [tail.graph.output[0].name for tail in tails]
    return _Cut(first, parts, tails, exits, chains)


def _take(read: ReadModel, state: Sequence[ValueInfoProto], name: str) -> None:
    """Let a later stage or a head read a state of any number of rows."""
    rows = fixed_rows(read.model)
    if rows is None:
        forget_shapes(read.model)
    else:
        free_rows(read.model, rows)
    for model in (read.given, read.model):
        take_state(model, state, name)


def _keep_scores(head: ModelProto) -> None:
    """Keep a head's first output, its scores; others repeat them on another scale."""
    first = head.graph.output[0]
    kept = type(first)()
    kept.CopyFrom(first)
    del head.graph.output[:]
    head.graph.output.extend([kept])


def _run_named(model: ModelProto, state: State, name: str) -> State:
    try:
        return tuple(run_graph(model, state))
    except Exception as error:  # the runtime's types are its own
        first, *_ = str(error).splitlines()
        raise ValueError(
            f"{name} cannot run {len(state[0])} rows on what the stage before it returns: {first}"
        ) from error


def _finish(
    cut: _Cut, name: str, options: OnnxOptions, log_step: Callable[[str], None]
) -> ImportReport:
    """Check the answers on data, and write the run."""
    reader = cut.first.reader
    log_step("reading the dataset")
    data = load_dataset(options.data, reader.images)
    check_task(data, reader, cut.first.name)
    few = few_rows(reader, data.test)
    expected = [answers_as_given(chain, cut.first.rows, few)[place] for chain, place in cut.chains]
    scales = [scale_of(_flat(each), exit) for each, exit in zip(expected, cut.exits, strict=True)]
    heads = [as_head(tail, scale) for tail, scale in zip(cut.tails, scales, strict=True)]
    widths = {_flat(each).shape[1] for each in expected}
    if len(widths) > 1:
        raise ValueError(
            f"the exits have {', '.join(str(_flat(each).shape[1]) for each in expected)} classes; "
            f"all exits of a network must have the same classes"
        )
    data = in_order_of(data, options.class_names, widths.pop(), cut.first.name)
    graphs = Graphs(cut.stages, heads)
    answers = [
        log_softmax(_flat(each), scale) for each, scale in zip(expected, scales, strict=True)
    ]
    disagreement = check_answers(graphs, few, dict(enumerate(answers)), cut.first)
    log_step(f"measuring the accuracy on {len(data.test.labels)} test rows")
    tested = record_split(open_in_memory(graphs), reader.preprocess, data.test)
    order = order_of_classes(tested.log_probs[-1].argmax(-1), data.test.labels, len(data.classes))
    save_onnx_run(
        options.out,
        run_config(reader, data, options.data, len(heads), name),
        graphs,
        reader.tokenizer,
    )
    return ImportReport(
        cut.exits,
        scales[-1],
        disagreement,
        tested.correct.mean(0).tolist(),
        None if order is None else tuple(data.classes[label] for label in order),
    )


def check_task(data: Dataset, reader: Reader, name: str) -> None:
    """Check that a network reads what the dataset holds.

    Raises:
        ValueError: If it does not.
    """
    if data.task != reader.task:
        raise ValueError(f"{name} reads {reader.task}s, the dataset is one of the task {data.task}")


def check_answers(
    graphs: Graphs, few: State, expected: Mapping[int, NDArray[np.float64]], first: FirstGraph
) -> float:
    """Return the largest difference of a log-probability that counts between graphs and files.

    Args:
        graphs: Stages and heads.
        few: An input of some real rows.
        expected: Log-probabilities of some exits by the files themselves, (N, C) each.
        first: What the files are named, and how precise they are.

    Raises:
        ValueError: If it is more than rounding explains.
    """
    backend, state, found = open_in_memory(graphs), few, list[float]()
    for exit in range(backend.num_exits):
        state = backend.run_stage(exit, state)
        if exit not in expected:
            continue
        mine = backend.run_head(exit, state).log_probs
        # Differences of hardly possible classes mean nothing, so probabilities are compared.
        found.append(float(np.abs(np.exp(mine) - np.exp(expected[exit])).max()))
    largest = float(np.nan_to_num(np.max(found), nan=np.inf))
    limit = LIMIT if first.is_single else HALF_LIMIT
    if largest > limit:
        raise ValueError(
            f"the stages differ from {first.name} by {largest:.2g} in a probability on real "
            f"inputs, over {limit}; please report this network"
        )
    return largest


def run_config(
    reader: Reader, data: Dataset, config: DataConfig, num_exits: int, name: str
) -> RunConfig:
    """Describe a run of given graphs."""
    return RunConfig(
        arch=ONNX,
        settings={"task": reader.task, "num_exits": num_exits},
        classes=data.classes,
        input=reader.input,
        data=asdict(config),
        start=name,
    )


def _flat(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    return scores.reshape(len(scores), -1)
