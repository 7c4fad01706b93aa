"""What every exit of a shipped bundle says of real test inputs, clean and corrupted.

    .venv/bin/python -m benchmarks.record_drift image --out drift_image.npz
    .venv/bin/python -m benchmarks.record_drift text --out drift_text.npz

By default of the 300 test inputs of this repository. One thread. `benchmarks.control.drift_sets`
reads the
file; of texts it holds too what each length costs here until each exit.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.control.drift_sets import (
    DriftSet,
    measure_lengths,
    record_images,
    record_texts,
    save_drift_set,
)
from models.bundle import load_bundle
from models.data.text_table import Columns
from models.preprocess import ImagePreprocessor
from models.runtime.onnx_backend import OnnxBackend
from profiling.latency import machine_name
from profiling.loadtest.corruption import CORRUPTIONS
from profiling.loadtest.inputs import Inputs, read_inputs
from profiling.loadtest.variants import read_variant

REPO = Path(__file__).resolve().parent.parent
BUNDLES = {
    "image": REPO / "models/zoo/cifar10-resnet56",
    "text": REPO / "models/zoo/ag-news-minilm",
}
TEXTS = REPO / "tests/data/ag_news_test_300.tsv"
SPOILT = [f"{kind}-{severity}" for kind in CORRUPTIONS for severity in (1, 3, 5)]
FORMS = {
    "image": ["clean", *SPOILT],
    "text": ["clean", "shorter-8", "longer-3", "misspelt-30"],
}
MAX_PIXELS = 50_000_000


def main() -> None:
    """Record, write, and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modality", choices=FORMS)
    parser.add_argument("--dataset", type=Path, help="an .npz of images or a table of texts")
    parser.add_argument("--columns", default="text,label", help="of a table (default: text,label)")
    parser.add_argument("--rows", type=int, default=2000, help="at most, drawn at random")
    parser.add_argument("--forms", help="with commas between (default: severities 1, 3, 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    inputs = some_of(read(args), args.rows, args.seed)
    names = args.forms.split(",") if args.forms else FORMS[args.modality]
    drift = record(args.modality, inputs, names, args.seed)
    save_drift_set(drift, args.out)
    show(drift)


def read(args: argparse.Namespace) -> Inputs:
    """The whole test set."""
    if args.modality == "image":
        return read_inputs(args.dataset, None)
    text, label = args.columns.split(",")
    return read_inputs(None, args.dataset or TEXTS, Columns(text, label))


def some_of(inputs: Inputs, rows: int, seed: int) -> Inputs:
    """So many at random; files of datasets are often sorted by class."""
    order = np.random.default_rng(seed).permutation(len(inputs.items))
    return inputs.of_rows(order[:rows].tolist())


def record(modality: str, inputs: Inputs, names: Sequence[str], seed: int) -> DriftSet:
    """With the shipped bundle of this modality."""
    bundle = load_bundle(BUNDLES[modality])
    backend = OnnxBackend(bundle.stage_files, bundle.head_files)
    preprocess = bundle.preprocessor(MAX_PIXELS)
    labels = numbered(inputs, bundle.manifest.classes)
    forms = [read_variant(name, inputs.modality) for name in names]
    if isinstance(preprocess, ImagePreprocessor):
        return record_images(backend, preprocess, inputs.files, labels, forms, seed)
    drift = record_texts(backend, preprocess, inputs.texts, labels, forms, seed)
    return drift._replace(length_costs=measure_lengths(backend, preprocess))


def numbered(inputs: Inputs, classes: Sequence[str]) -> NDArray[np.int64]:
    """The labels as the bundle numbers its classes."""
    assert inputs.labels is not None, "both test sets have labels"
    return np.array([each if isinstance(each, int) else classes.index(each)
                     for each in inputs.labels])  # fmt: skip


def show(drift: DriftSet) -> None:
    """Accuracy of each exit, length and cost."""
    print(f"{machine_name()}, one thread, {len(drift.labels)} inputs")
    for number, (form, accuracy) in enumerate(zip(drift.forms, drift.accuracy, strict=True)):
        tokens = "" if drift.tokens is None else f", {drift.tokens[number].mean():.1f} tokens"
        print(f"{form:12s} {(100 * accuracy).round(2)} % right at the exits{tokens}")
    if drift.length_costs is not None:
        lengths, costs_ms = drift.length_costs
        for length, costs in zip(lengths, costs_ms.T, strict=True):
            print(f"{length:4d} tokens: {costs.round(3)} ms until the exits")


if __name__ == "__main__":
    main()
