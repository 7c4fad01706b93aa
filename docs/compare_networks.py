"""Latency until each exit of several bundles, measured in turns in one run: ratios hold."""

import sys
from pathlib import Path

import numpy as np

from models.bundle import load_bundle
from models.onnx_backend import OnnxBackend
from profiling.latency import measure_latency

TURNS = 12


def main(folders: list[str]) -> None:
    """Print the cumulative medians in ms, one row per image, one thread."""
    backends, costs = {}, {}
    for folder in folders:
        bundle = load_bundle(Path(folder))
        size = bundle.manifest.preprocessing
        example = np.zeros((1, 3, size.height, size.width), np.float32)
        backends[folder] = (OnnxBackend(bundle.stage_files, bundle.head_files), example)
        costs[folder] = []
    for _ in range(TURNS):
        for folder, (backend, example) in backends.items():
            profile = measure_latency(backend, example, batch_sizes=(1,), warm_up=10, repeats=50)
            costs[folder].append(profile.costs_ms)
    for folder, turns in costs.items():
        print(folder, np.median(turns, axis=0).round(3).tolist())


if __name__ == "__main__":
    main(sys.argv[1:])
