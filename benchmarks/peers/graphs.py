"""A bundle's network as the one graph that other servers serve: all stages and the last head.

.venv/bin/python -m benchmarks.peers.graphs BUNDLE OUT.onnx [PRECISION]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import compose

from models.bundle import Variant, load_bundle


def write_whole_graph(variant: Variant, path: Path) -> None:
    """Write the graph from the input to the logits of the last exit."""
    files = [*variant.stage_files, variant.head_files[-1]]
    write_graph(join_graphs([onnx.load(file) for file in files]), path)


def join_graphs(parts: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Join graphs whose outputs are the inputs of the next; of the last only the first output."""
    whole = parts[0]
    for number, part in enumerate(parts[1:], 1):
        whole = _append(whole, compose.add_prefix(part, f"part{number}_"))
    logits = whole.graph.output[0].name  # log-probabilities are the second
    whole = onnx.utils.Extractor(whole).extract_model(
        [given.name for given in whole.graph.input], [logits]
    )
    remove_repeated_opsets(whole)
    graph = whole.graph
    del graph.value_info[:]  # sizes of the values between nodes, which any reader infers
    for described in (graph, *graph.node, *graph.input, *graph.output):
        del described.metadata_props[:]  # traces of the export, with paths
    return whole


def remove_repeated_opsets(model: onnx.ModelProto) -> None:
    """Name each operator set once; graphs that onnx merged name those of all parts."""
    versions = {opset.domain: opset.version for opset in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*each) for each in versions.items())


def write_graph(graph: onnx.ModelProto, path: Path) -> None:
    """Check a graph and write it as a single file."""
    onnx.checker.check_model(graph, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graph.SerializeToString())


def _append(first: onnx.ModelProto, second: onnx.ModelProto) -> onnx.ModelProto:
    pairs = zip(first.graph.output, second.graph.input, strict=True)
    return compose.merge_models(first, second, [(out.name, given.name) for out, given in pairs])


if __name__ == "__main__":
    bundle, (out, *precision) = load_bundle(Path(sys.argv[1])), sys.argv[2:]
    write_whole_graph(bundle.variant(*precision), Path(out))  # type: ignore[arg-type]
