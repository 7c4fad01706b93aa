"""Record the predictions of every exit of a shipped bundle on clean and corrupted test inputs.

    .venv/bin/python -m benchmarks.record_drift image --out drift_image.npz
    .venv/bin/python -m benchmarks.record_drift text --out drift_text.npz

The default inputs are the 300 test inputs of this repository. One thread.
`benchmarks.control.drift_sets` reads the file; for texts it also contains the cost of each length
until each exit on this machine. JSON on the last line.
"""

import argparse
import tempfile
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
from benchmarks.harness import (
    BUNDLES,
    MAX_PIXELS,
    TEXTS,
    Figures,
    make_parser,
    onnx_backend,
    print_report,
)
from models.bundle import load_bundle
from models.data.text_table import Columns
from models.preprocess import ImagePreprocessor
from profiling.loadtest.corruption import CORRUPTIONS
from profiling.loadtest.inputs import Inputs, read_inputs
from profiling.loadtest.variants import read_variant

CORRUPTED = [f"{kind}-{severity}" for kind in CORRUPTIONS for severity in (1, 3, 5)]
VARIANTS = {
    "image": ["clean", *CORRUPTED],
    "text": ["clean", "shorter-8", "longer-3", "misspelt-30"],
}
ROWS, SMOKE_ROWS, SMOKE_VARIANTS = 2000, 8, 2


def main() -> None:
    """Record, write, and print the accuracies."""
    parser = make_parser(__doc__)
    parser.add_argument("modality", choices=VARIANTS, nargs="?", default="image")
    parser.add_argument("--dataset", type=Path, help="an .npz of images or a table of texts")
    parser.add_argument("--columns", default="text,label", help="of a table (default: text,label)")
    parser.add_argument("--rows", type=int, default=ROWS, help="at most, drawn at random")
    parser.add_argument("--forms", help="with commas between (default: severities 1, 3, 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="required, but for a smoke run")
    args = parser.parse_args()
    if args.out is None and not args.smoke:
        parser.error("give --out FILE.npz")
    inputs = draw(read(args), SMOKE_ROWS if args.smoke else args.rows, args.seed)
    names = args.forms.split(",") if args.forms else VARIANTS[args.modality]
    drift = record(
        args.modality, inputs, names[: SMOKE_VARIANTS if args.smoke else None], args.seed
    )
    with tempfile.TemporaryDirectory() as folder:
        save_drift_set(drift, args.out or Path(folder) / "drift.npz")
    print_report(report_of(drift), smoke=args.smoke)


def read(args: argparse.Namespace) -> Inputs:
    """Read the whole test set."""
    if args.modality == "image":
        return read_inputs(args.dataset, None)
    text, label = args.columns.split(",")
    return read_inputs(None, args.dataset or TEXTS, Columns(text, label))


def draw(inputs: Inputs, rows: int, seed: int) -> Inputs:
    """Draw inputs at random: files of datasets are often sorted by class."""
    order = np.random.default_rng(seed).permutation(len(inputs.items))
    return inputs.of_rows(order[:rows].tolist())


def record(modality: str, inputs: Inputs, names: Sequence[str], seed: int) -> DriftSet:
    """Record the shipped bundle of a modality."""
    bundle = load_bundle(BUNDLES[modality])
    backend = onnx_backend(bundle.folder)
    preprocess = bundle.preprocessor(MAX_PIXELS)
    labels = label_indices(inputs, bundle.manifest.classes)
    variants = [read_variant(name, inputs.modality) for name in names]
    if isinstance(preprocess, ImagePreprocessor):
        return record_images(backend, preprocess, inputs.files, labels, variants, seed)
    drift = record_texts(backend, preprocess, inputs.texts, labels, variants, seed)
    return drift._replace(length_costs=measure_lengths(backend, preprocess))


def label_indices(inputs: Inputs, classes: Sequence[str]) -> NDArray[np.int64]:
    """Labels as indices of the bundle's classes."""
    assert inputs.labels is not None, "both test sets have labels"
    return np.array([each if isinstance(each, int) else classes.index(each)
                     for each in inputs.labels])  # fmt: skip


def report_of(drift: DriftSet) -> Figures:
    """Print and return the accuracy of each exit, and lengths and costs of texts."""
    accuracy = (100 * drift.accuracy).round(2)
    print(f"one thread, {len(drift.labels)} inputs")
    for number, (name, each) in enumerate(zip(drift.variants, accuracy, strict=True)):
        tokens = "" if drift.tokens is None else f", {drift.tokens[number].mean():.1f} tokens"
        print(f"{name:12s} {each} % accuracy at the exits{tokens}")
    figures: Figures = {"accuracy": dict(zip(drift.variants, accuracy.tolist(), strict=True))}
    if drift.length_costs is not None:
        lengths, costs_ms = drift.length_costs
        for length, costs in zip(lengths, costs_ms.T, strict=True):
            print(f"{length:4d} tokens: {costs.round(3)} ms until the exits")
        figures["costs_ms"] = dict(zip(lengths.tolist(), costs_ms.T.tolist(), strict=True))
    return figures


if __name__ == "__main__":
    main()
