import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.bundle import graph_files
from models.export.class_order import reorder_classes
from models.runtime.onnx_backend import OnnxBackend
from tests.small_bundles import write_rest


@settings(max_examples=10)
@given(st.permutations(range(5)))
def test_only_the_order_of_the_classes_changes(order: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stages, heads = graph_files(folder, 2)
        write_rest(stages, heads, 3, 5, seed=0)
        reorder_classes(heads[1], folder / "new.onnx", order)
        backend = OnnxBackend([stages[1]] * 2, [heads[1], folder / "new.onnx"])
        state = (np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32),)
        before, after = backend.run_head(0, state), backend.run_head(1, state)
        np.testing.assert_array_equal(after.logits, before.logits[:, order])
        np.testing.assert_array_equal(after.log_probs, before.log_probs[:, order])
