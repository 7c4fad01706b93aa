"""Every benchmark can be imported, is part of the smoke runs, and has a line in the table."""

import importlib
import re
from pathlib import Path

import pytest

from benchmarks.smoke import BENCHMARKS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"
# The servers of the peers run in environments of their own.
FILES = [path for path in sorted(FOLDER.rglob("*.py")) if not path.name.startswith("serve_")]
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]
# Commands that measure nothing.
TOOLS = {"benchmarks.smoke", "benchmarks.peers.graphs", "benchmarks.peers.quantise"}


def commands() -> set[str]:
    """Modules that run as `python -m`."""
    return {
        module
        for module, path in zip(MODULES, FILES, strict=True)
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }


@pytest.mark.parametrize("module", MODULES)
def test_every_module_can_be_imported(module: str) -> None:
    importlib.import_module(module.removesuffix(".__init__"))


def test_every_benchmark_has_a_smoke_run() -> None:
    assert {f"benchmarks.{name}" for name in BENCHMARKS} == commands() - TOOLS
    assert len(set(BENCHMARKS)) == len(BENCHMARKS)


def test_every_benchmark_is_in_the_table() -> None:
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`python -m ([\w.]+)", table)) == commands()


def test_documents_name_commands_that_exist() -> None:
    documents = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *FOLDER.rglob("README.md")]
    found: set[str] = set()
    for document in documents:
        text = document.read_text(encoding="utf-8")
        named = re.findall(r"-m (benchmarks(?:\.\w+)+)", text)
        files = re.findall(r"\b(benchmarks/[\w/]+)\.py", text)
        found |= {*named, *(file.replace("/", ".") for file in files)}
    assert found and found - set(MODULES) - {"benchmarks.peers.serve_litserve"} == set()
