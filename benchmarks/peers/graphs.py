"""A bundle's network as the one graph that other servers serve: all stages and the last head.

.venv/bin/python -m benchmarks.peers.graphs BUNDLE OUT.onnx
"""

import sys
from pathlib import Path

import onnx
from onnx import compose

from models.bundle import Bundle, Weights, load_bundle
from models.export.weights import with_stored_weights


def write_whole_graph(bundle: Bundle, path: Path, weights: Weights = "float32") -> None:
    """Write the graph from the input to the logits of the last exit."""
    whole = onnx.load(bundle.stage_files[0])
    parts = [*bundle.stage_files[1:], bundle.head_files[-1]]
    for number, file in enumerate(parts, 1):
        whole = _append(whole, compose.add_prefix(onnx.load(file), f"part{number}_"))
    logits = whole.graph.output[0].name  # log-probabilities are the second
    whole = onnx.utils.Extractor(whole).extract_model(
        [given.name for given in whole.graph.input], [logits]
    )
    graph = whole.graph
    del graph.value_info[:]  # sizes of the values between nodes, which any reader infers
    for described in (graph, *graph.node, *graph.input, *graph.output):
        del described.metadata_props[:]  # traces of the export, with paths
    stored = with_stored_weights(whole, weights)
    onnx.checker.check_model(stored, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stored.SerializeToString())


def _append(first: onnx.ModelProto, second: onnx.ModelProto) -> onnx.ModelProto:
    pairs = zip(first.graph.output, second.graph.input, strict=True)
    return compose.merge_models(first, second, [(out.name, given.name) for out, given in pairs])


if __name__ == "__main__":
    write_whole_graph(load_bundle(Path(sys.argv[1])), Path(sys.argv[2]), "float16")
