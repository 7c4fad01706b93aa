import itertools
from pathlib import Path

import pytest

from benchmarks.precision import compare, exit_bytes, measure_in_turns, stage_pass, table
from models.bundle import load_bundle


def test_times_are_medians_of_the_rounds_that_count() -> None:
    now = [0.0]
    rounds = itertools.count()

    def plain() -> None:
        number = next(rounds)
        now[0] += 100.0 if number < 2 else 0.004 if number == 5 else 0.002  # slow to warm up

    def stages(with_heads: bool) -> list[float]:
        return [0.003, 0.007] if with_heads else [0.001, 0.002]

    plain_ms, (times,) = measure_in_turns(plain, [stages], rounds=10, clock=lambda: now[0])
    assert plain_ms == pytest.approx(2)
    assert times.stages_ms == pytest.approx(2)
    assert times.exits_ms == pytest.approx([3, 7])


def test_a_pass_is_timed_until_each_exit(shipped_bundle: Path) -> None:
    bundle = load_bundle(shipped_bundle)
    ticks = itertools.count(10)
    run = stage_pass(bundle.variant(), bundle.preprocessor(10**6).example, lambda: next(ticks))
    assert run(True) == run(False) == list(range(1, bundle.manifest.num_exits + 1))


def test_the_size_of_an_exit_counts_all_graphs_before_it(shipped_bundle: Path) -> None:
    variant = load_bundle(shipped_bundle).variant()
    sizes = exit_bytes(variant)
    assert sizes[0] == sum(
        f.stat().st_size for f in (variant.stage_files[0], variant.head_files[0])
    )
    files = [*variant.stage_files, *variant.head_files]
    assert sizes[-1] == sum(file.stat().st_size for file in files)


def test_the_table_has_a_line_for_every_precision_and_exit(shipped_bundle: Path) -> None:
    bundle = load_bundle(shipped_bundle)
    report = compare(bundle, None, rounds=2)
    lines = table("network", report)
    rows = [line for line in lines if line.startswith(tuple(f"| {p} |" for p in bundle.precisions))]
    assert len(rows) == len(bundle.precisions) * bundle.manifest.num_exits
    accuracy = report["precisions"][bundle.precisions[0]]["accuracy"]
    assert f"| {100 * accuracy[-1]:.2f} |" in rows[bundle.manifest.num_exits - 1]
    assert report["precisions"].keys() == set(bundle.precisions)
