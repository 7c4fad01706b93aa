from pathlib import Path

import pytest

from models.bundle import load_bundle
from server.memory import available_bytes, needed_bytes

KIB = 1024


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:    500 kB\n")
    return tmp_path


def test_the_host_tells_what_is_free(proc: Path) -> None:
    assert available_bytes(proc, proc / "none") == 500 * KIB


def test_a_container_has_what_its_limit_leaves(proc: Path, tmp_path: Path) -> None:
    group = tmp_path / "cgroup"
    group.mkdir()
    (group / "memory.max").write_text("300000\n")
    (group / "memory.current").write_text("250000\n")
    assert available_bytes(proc, group) == 50_000
    (group / "memory.stat").write_text("anon 1\ninactive_file 40000\n")
    assert available_bytes(proc, group) == 90_000
    (group / "memory.max").write_text("max\n")
    assert available_bytes(proc, group) == 500 * KIB


def test_a_container_of_version_1(proc: Path, tmp_path: Path) -> None:
    group = tmp_path / "cgroup" / "memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("300000\n")
    (group / "memory.usage_in_bytes").write_text("250000\n")
    (group / "memory.stat").write_text("total_inactive_file 1000\n")
    assert available_bytes(proc, group.parent) == 51_000
    (group / "memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    assert available_bytes(proc, group.parent) == 500 * KIB


def test_without_files_nothing_is_known(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, tmp_path) is None


def test_every_engine_needs_the_graphs(shipped_bundle: Path) -> None:
    bundle = load_bundle(shipped_bundle)
    one = needed_bytes(bundle, 1)
    graphs = sum(path.stat().st_size for path in (shipped_bundle / "float32").rglob("*.onnx"))
    assert one >= 2 * graphs > 0
    assert needed_bytes(bundle, 3) == 3 * one
