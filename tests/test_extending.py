"""The two examples of docs/extending.md, as a reader would follow them: one file and one line."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text()

POLICY = """
import sys
from pathlib import Path

import numpy as np

from profiling.calibration import load_predictions
from scheduler.fitted import load_scheduler, save_scheduler
from scheduler.fitting.fit import fit_scheduler
from scheduler.policy import exits_taken, replay
from server.cli.main import main

folder = Path(sys.argv[1])
flags = ["--costs", "1,2,3.3", "--policies", "maxprob,margin", "--report", str(folder / "report")]
flags += ["--json", str(folder / "figures.json")]
assert main(["evaluate", "--predictions", str(folder / "mine.npz"), *flags]) == 0

calibration, _, test = load_predictions(folder / "mine.npz")
fitted = fit_scheduler("margin", *calibration, np.array([1.0, 2.0, 3.3]))
save_scheduler(fitted, folder)
loaded = load_scheduler(folder)
assert type(loaded.policy).__name__ == "MarginPolicy"
assert len(loaded.frontier) > 20
# Costs whose means are not exact in binary, as those of a real host.
assert len(fit_scheduler("margin", *calibration, np.array([0.8627, 1.62, 2.213])).frontier) > 20
for parameter in loaded.frontier.parameters[::20]:
    exits = [
        exits_taken(each.policy, replay(each.policy, test.log_probs), parameter)
        for each in (fitted, loaded)
    ]
    assert np.array_equal(*exits)
main(["fit", "--help"])
"""

BACKBONE = """
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from models.export.onnx_graphs import export_graphs, largest_disagreement, write_graphs
from models.networks.families import Network
from models.training.run import BEST, read_run
from server.cli.main import main

folder = Path(sys.argv[1])
out = folder / "run"
flags = ["--epochs", "1", "--batch-size", "16", "--calibration-size", "4", "--out", str(out)]
flags += ["--settings", str(folder / "settings.json"), "--device", "cpu"]
assert main(["train", "--arch", "plain", "--dataset", str(folder / "images"), *flags]) == 0

run = read_run(out)
model = Network(run.arch, run.settings).build()
model.load_state_dict(load_file(out / BEST))
assert [stage[0].out_channels for stage in model.stages] == [4, 8, 8]
few, many = (
    (np.random.default_rng(rows).normal(size=(rows, 3, 16, 16)).astype(np.float32),)
    for rows in (2, 5)
)
backend = write_graphs(export_graphs(model, few, many), out)
assert backend.num_exits == 3
assert largest_disagreement(model, backend, many) < 1e-4
main(["train", "--help"])
"""


def block(path: str) -> str:
    """The one code block of the page that belongs to a file."""
    (found,) = re.findall(rf"```python\n# {re.escape(path)}\n(.*?)```", PAGE, re.DOTALL)
    return found


def extended(tree: Path, package: str, file: str, table: str, after: str) -> Path:
    """A tree with the example's file and line; all but one package is linked to the real one."""
    for name in ("models", "profiling", "scheduler", "server"):
        (tree / name).symlink_to(ROOT / name)
    if "/" in package:  # replace the link by a folder of links
        parent = package.split("/")[0]
        (tree / parent).unlink()
        (tree / parent).mkdir()
        for entry in (ROOT / parent).iterdir():
            (tree / parent / entry.name).symlink_to(entry)
    (tree / package).unlink()
    shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / file).write_text(block(file))
    lines = block(table).splitlines()
    imports = "".join(f"{line}\n" for line in lines if line.startswith("from "))
    (entry_line,) = [line for line in lines if line.startswith(" ")]
    text = (tree / table).read_text()
    assert text.count(after) == 1
    text = text.replace(after, f"{after}{entry_line}\n")
    (tree / table).write_text(text.replace("\nfrom ", f"\n{imports}from ", 1))
    return tree


def run(tree: Path, script: str, folder: Path) -> str:
    """What a script prints that imports the extended tree."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env={**os.environ, "PYTHONPATH": str(tree)},
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


@pytest.mark.slow
def test_the_policy_of_the_page_is_fitted_saved_and_evaluated(
    folder: Path,
    tree: Path,
    make_probs: Callable[..., tuple[NDArray[np.float64], NDArray[np.int64]]],
) -> None:
    (seen, seen_labels), (unseen, unseen_labels) = make_probs(200), make_probs(120, seed=1)
    np.savez(
        folder / "mine.npz",
        calibration_probs=seen,
        calibration_labels=seen_labels,
        test_probs=unseen,
        test_labels=unseen_labels,
    )
    extended(tree, "scheduler", "scheduler/margin.py", "scheduler/policies.py", " ENTROPY_OPT,\n")
    printed = run(tree, POLICY, folder)
    assert re.search(r"--policy \{stopping,.*,margin\}", printed)
    page = (folder / "report/index.html").read_text()
    assert "scores-margin.svg" in page and (folder / "report/scores-margin.svg").is_file()
    assert "#0e7490" in (folder / "report/accuracy.svg").read_text()
    results = json.loads((folder / "figures.json").read_text())["results"]
    rows = {row["budget"]: row for row in results if row["policy"] == "margin"}
    assert len(rows) == 7 and all(row["feasible"] for row in rows.values())
    assert min(row["calibration_cost"] for row in rows.values()) > 1.0  # some rows go on


@pytest.mark.slow
def test_the_backbone_of_the_page_is_trained_and_exported(folder: Path, tree: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 3)):
        for name, shade in (("dark", 40), ("light", 200)):
            place = folder / "images" / part / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(shade - 40, shade + 40, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    (folder / "settings.json").write_text('{"widths": [4, 8, 8]}')
    last = '    FamilyModule("fcn", ("fcn",), "segmentation network"),\n'
    networks = "models/networks"
    extended(tree, networks, f"{networks}/plain.py", f"{networks}/families.py", last)
    assert "plain: plain convolutions" in run(tree, BACKBONE, folder)
