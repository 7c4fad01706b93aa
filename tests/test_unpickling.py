"""Nothing that comes from outside is unpickled, and no process sends another a pickle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("server", "models", "scheduler", "profiling", "benchmarks")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# Modules that unpickle, or send pickles between processes.
PICKLERS = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",
    "multiprocessing",
}  # fmt: skip
SAFELY = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}


def faults(text: str) -> Iterator[str]:
    """What in a module would unpickle."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{each.name}" for each in node.names)]
        else:
            names = []
        for name in names:
            if name.partition(".")[0] in PICKLERS or name.endswith("ProcessPoolExecutor"):
                yield f"line {node.lineno} imports {name}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).replace("numpy.", "np.")
            wanted = SAFELY.get(called)
            given = [ast.unparse(each) for each in node.keywords]
            if wanted is not None and wanted not in given:
                yield f"line {node.lineno} calls {called} without {wanted}"
            if called in ("eval", "exec", "torch.jit.load") or "allow_pickle=True" in given:
                yield f"line {node.lineno} calls {called}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_unpickles_nothing(path: Path) -> None:
    assert list(faults(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from multiprocessing import Pipe",
        "from concurrent.futures import ProcessPoolExecutor",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import numpy\nnumpy.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
    ],
)
def test_what_would_unpickle_is_found(text: str) -> None:
    assert list(faults(text))
