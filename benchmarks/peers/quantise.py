"""Quantise the plain network of images as this repository's are, and measure its accuracy.

    .venv/bin/python -m benchmarks.peers.quantise CIFAR10.npz

Writes plain-resnet56-int8.onnx and plain-resnet56.json beside this file. The scales come from
training rows. Accuracies are those on the test rows that are reported: half of them, as for the
shipped bundle.
"""

import argparse
import json
from pathlib import Path
from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchmarks.peers.classifier import MEAN, SIDE, STD, open_session
from benchmarks.peers.graphs import join_graphs, remove_repeated_opsets, write_graph
from benchmarks.peers.tasks import PLAIN_IMAGE_FIGURES, PLAIN_IMAGE_GRAPHS
from models.backend import State
from models.data.dataset import DataConfig, Images, Split
from models.data.load import load_dataset
from models.export.int8 import quantise_graphs
from models.export.onnx_graphs import Graphs
from models.preprocess import ImagePreprocessor

HELD_OUT = 2500  # test rows each for calibration and certification
SCALE_ROWS, CHOICE_ROWS, BATCH = 300, 500, 100
MAX_LOSS = 0.005


def main() -> None:
    """Write the graph, then the accuracy of both precisions."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, metavar="CIFAR10.npz", help="all 60,000 images")
    path = parser.parse_args().data
    # The rows of the shipped bundle, whose starting weights have seen all training images.
    data = load_dataset(
        DataConfig(
            str(path),
            calibration_size=HELD_OUT,
            calibration_from="test",
            certification_size=HELD_OUT,
        )
    )
    order = np.random.default_rng(0).permutation(len(data.train.labels))
    scale_rows, choice_rows = order[:SCALE_ROWS], order[SCALE_ROWS : SCALE_ROWS + CHOICE_ROWS]
    quantised = quantise_graphs(
        split_plain_graph(onnx.load(PLAIN_IMAGE_GRAPHS["float32"])),
        states(data.train, scale_rows),
        states(data.train, choice_rows),
        max_loss=MAX_LOSS,
        log_step=print,
    )
    parts = [*quantised.graphs.stages, *quantised.graphs.heads]
    write_graph(join_graphs(parts), PLAIN_IMAGE_GRAPHS["int8"])
    figures = {
        "dataset": path.stem,
        "test_rows": len(data.test.labels),
        "accuracy": {
            precision: round(accuracy(graph, data.test), 4)
            for precision, graph in PLAIN_IMAGE_GRAPHS.items()
        },
        "int8": quantised.method,
    }
    PLAIN_IMAGE_FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    print(figures["accuracy"])


def split_plain_graph(whole: onnx.ModelProto) -> Graphs:
    """Cut a plain network before its mean over all pixels, into one stage and one head."""
    graph = onnx.shape_inference.infer_shapes(whole)  # a cut needs the type of its value
    remove_repeated_opsets(graph)
    (pool,) = [node for node in graph.graph.node if node.op_type == "ReduceMean"]
    (given,), (logits,) = graph.graph.input, graph.graph.output
    cut = onnx.utils.Extractor(graph)
    stage = cut.extract_model([given.name], [pool.input[0]])
    head = cut.extract_model([pool.input[0]], [logits.name])
    # Heads return log-probabilities too.
    head.graph.node.append(helper.make_node("LogSoftmax", [logits.name], ["log_probs"], axis=-1))
    sizes = ["rows", logits.type.tensor_type.shape.dim[-1].dim_value]
    head.graph.output.append(helper.make_tensor_value_info("log_probs", TensorProto.FLOAT, sizes))
    return Graphs([stage], [head])


def states(split: Split, rows: NDArray[np.int64]) -> list[State]:
    """Normalised images in batches, (n, 3, H, W) each."""
    images = cast(Images, split.inputs)
    mean, std = ((float(red), float(green), float(blue)) for red, green, blue in (MEAN, STD))
    normalise = ImagePreprocessor(SIDE, SIDE, mean, std).normalise
    starts = range(0, len(rows), BATCH)
    return [(normalise(images[rows[start : start + BATCH]]),) for start in starts]


def accuracy(graph: Path, split: Split) -> float:
    """Share of right answers."""
    session = open_session(str(graph))
    name, rows = session.get_inputs()[0].name, np.arange(len(split.labels))
    classes = [session.run(None, {name: pixels})[0].argmax(1) for (pixels,) in states(split, rows)]
    return float((np.concatenate(classes) == split.labels).mean())


if __name__ == "__main__":
    main()
