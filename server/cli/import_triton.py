"""`eenet import --triton`: turns an entry of a Triton repository into a run."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from server.cli.attach_onnx import HEADS, print_attached, print_places
from server.cli.import_onnx import onnx_options, print_imported
from server.cli.progress import StepLog
from server.cli.train import train_config

if TYPE_CHECKING:
    from models.onnx_import.triton import TritonEntry
    from server.pipeline.onnx_import import OnnxOptions

NUM_EXITS = 4


def run_triton(args: argparse.Namespace) -> dict[str, Any]:
    """Import the entry of --triton: as its exits if it has several outputs, else attach exits.

    Raises:
        ValueError: If it is no entry with one ONNX classifier, configuration and graph contradict
            each other, or it does not fit the dataset.
    """
    from models.onnx_import.reading import read_model
    from models.onnx_import.triton import read_entry
    from models.onnx_import.triton_graph import check_graph

    options = onnx_options(args)
    entry = read_entry(args.triton)
    _print_entry(entry)
    graph = read_model(entry.model).given.graph
    check_graph(entry, graph)
    options = replace(
        options,
        preprocessing=options.preprocessing or entry.preprocessing,
        class_names=options.class_names or entry.classes,
    )
    outputs = [value.name for value in entry.outputs or graph.output]
    document = _import(args, entry, options, outputs)
    print(f"to keep the name, give eenet build --name {entry.name}")
    return {"name": entry.name, "version": entry.version, **document}


def _import(
    args: argparse.Namespace, entry: TritonEntry, options: OnnxOptions, outputs: list[str]
) -> dict[str, Any]:
    from server.pipeline.onnx_attach import attach_exits, choose, find_cut_points
    from server.pipeline.onnx_import import import_file

    step, num_exits = StepLog(), args.num_exits
    if len(outputs) > 1:
        if num_exits is not None:
            raise ValueError(
                f"--num-exits is {num_exits}, but the outputs {', '.join(outputs)} are the exits; "
                f"leave it out"
            )
        return print_imported(options.out, import_file(entry.model, options, step, outputs))
    step(f"cutting {entry.model}")
    points = find_cut_points(entry.model, options.preprocessing, outputs[0])
    places = len(points.tensors) + 1
    exits = choose(points, min(NUM_EXITS, places) if num_exits is None else num_exits, None)
    print_places(points, exits)
    training = train_config(args, HEADS)
    return print_attached(options.out, attach_exits(points, exits, training, options, step))


def _print_entry(entry: TritonEntry) -> None:
    print(f"model: {entry.model}, version {entry.version} of {entry.name}")
    if entry.classes is not None:
        print(f"classes of its labels: {', '.join(entry.classes)}")
    if entry.ignored:
        print(f"ignored, as it says how Triton runs the model: {', '.join(entry.ignored)}")
