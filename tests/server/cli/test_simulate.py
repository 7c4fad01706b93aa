import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import rewrite_manifest
from models.stage_costs import StageCosts
from profiling.simulation.simulator import MODES
from server.cli.main import build_parser, main
from server.cli.simulate import bundle_exits, run
from tests.bundles import scheduler_of, variant_of

RATES = ["--costs", "1,2,3", "--exit-rates", "0.5,0.25,0.25", "--samples", "4000"]


def parsed(*flags: str) -> argparse.Namespace:
    return build_parser().parse_args(["simulate", *flags])


def figures(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    """What the command prints as JSON."""
    assert main(["simulate", *flags, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_without_a_bundle_exit_rates_and_costs_tell_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = figures(capsys, *RATES, "--free-rows", "16")
    assert shown["exit_rates"] == pytest.approx([0.5, 0.25, 0.25], abs=0.02)
    assert shown["batch_sizes"] == [1, 16, 32]
    rates = {mode: shown["modes"][mode]["throughput_per_s"] for mode in MODES}
    assert rates["refill"] > 1.5 * rates["compaction"] >= rates["run-to-completion"]
    assert rates["refill"] == pytest.approx(shown["capacity_per_s"], rel=0.03)
    assert shown["modes"]["refill"]["occupancy"] == pytest.approx([1, 1, 1], abs=0.05)


def test_a_line_for_each_mode_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    args = parsed(*RATES, "--rate", "300")
    run(args)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4000 samples, exit rates 0.4")
    assert [line.split()[0] for line in lines[2:]] == list(MODES)


def test_the_same_seed_gives_the_same_and_another_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [*RATES, "--rate", "300", "--bursts", "4"]
    first, again = (figures(capsys, *flags, "--seed", "3") for _ in range(2))
    assert first == again != figures(capsys, *flags, "--seed", "4")


def test_a_bundle_lends_its_exits_at_a_budget(
    capsys: pytest.CaptureFixture[str], shipped_bundle: Path
) -> None:
    flags = [str(shipped_bundle), "--costs", "2,4,6", "--samples", "3000"]
    costs, spent = np.array([2.0, 4.0, 6.0]), []
    for budget in ("3", "5"):
        shown = figures(capsys, *flags, "--budget-ms", budget)
        spent.append(float(costs @ np.array(shown["exit_rates"])))
    assert spent == pytest.approx([3, 5], rel=0.05)


def test_without_a_budget_the_trade_is_that_of_the_bundle(shipped_bundle: Path) -> None:
    frontier = scheduler_of(shipped_bundle).frontier
    default_ms = variant_of(shipped_bundle).entry.default_budget_ms
    assert default_ms is not None
    exits = bundle_exits(shipped_bundle, StageCosts.of_exits([1.0, 5.0, 6.0]))
    rates = np.bincount(exits, minlength=3) / len(exits)
    assert rates == pytest.approx(frontier.at_cost(default_ms).exit_rates, abs=0.05)


def with_profile(bundle: Path, folder: Path, profile: dict[str, Any]) -> Path:
    """Copy a bundle and give it another profile."""
    shutil.copytree(bundle, folder)
    variant = variant_of(folder)
    variant.profile.write_text(json.dumps(profile))
    rewrite_manifest(variant.bundle)
    return folder


def test_a_table_or_a_profile_gives_the_costs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, shipped_bundle: Path
) -> None:
    table = {"batch_sizes": [1, 8], "stages_ms": [[1.0, 2.0], [0.5, 1.0]]}
    bundle = with_profile(shipped_bundle, tmp_path / "bundle", table)
    flags = ["--exit-rates", "0.5,0.5", "--samples", "500"]
    (tmp_path / "profile.json").write_text(json.dumps(table))
    given = figures(capsys, *flags, "--cost-table", str(tmp_path / "profile.json"))
    own = figures(capsys, str(bundle), *flags)
    assert given["stages_ms"] == own["stages_ms"] == table["stages_ms"]
    assert given["modes"] == own["modes"]


def test_a_trace_is_played_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "trace").write_text("\n".join(str(second) for second in range(50)))
    flags = ["--costs", "1,2", "--exit-rates", "1,0", "--trace", str(tmp_path / "trace")]
    shown = figures(capsys, *flags)
    assert shown["samples"] == 50
    assert shown["modes"]["refill"]["latency_ms"]["p99"] == pytest.approx(1.0)
    assert figures(capsys, *flags, "--samples", "20")["samples"] == 20


def overload_flags(tmp_path: Path, *flags: str) -> list[str]:
    np.savez(tmp_path / "trace.npz", arrival_s=np.random.default_rng(0).uniform(size=500).cumsum())
    return ["--trace", str(tmp_path / "trace.npz"), "--seconds", "20", *flags]


@pytest.mark.slow
def test_ways_to_serve_an_overload_are_compared(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, shipped_bundle: Path
) -> None:
    flags = overload_flags(tmp_path, "--exceeding", "0.1,0.5", "--slo-ms", "200,500")
    costs = ["--costs", "20,30,40", "--free-rows", "4", "--workers", "2", "--max-batch", "4"]
    shown = figures(capsys, str(shipped_bundle), *flags, *costs)
    assert shown["capacity_per_s"] == pytest.approx(200)
    assert [load["exceeding"] for load in shown["loads"]] == pytest.approx([0.1, 0.5])
    light, heavy = shown["loads"]
    assert light["requests"] < heavy["requests"] and light["compression"] == heavy["compression"]
    assert len(light["results"]) == 2 * 8
    whole = [load["results"][0] for load in (light, heavy)]
    assert [each["policy"] for each in whole] == ["whole network"] * 2
    assert whole[0]["attainment"] > whole[1]["attainment"]
    given = figures(capsys, str(shipped_bundle), *flags, *costs, "--capacity", "50")
    assert given["loads"][0]["requests"] == pytest.approx(light["requests"] / 4, rel=0.1)


def test_an_overload_is_printed_as_a_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, shipped_bundle: Path
) -> None:
    flags = overload_flags(tmp_path, "--exceeding", "0.1", "--slo-ms", "20", "--capacity", "100")
    run(parsed(str(shipped_bundle), *flags))
    lines = capsys.readouterr().out.splitlines()
    assert "10.0% of the seconds exceed 100.0/s" in lines[0]
    assert lines[1].split()[:2] == ["SLO", "ms"]
    assert lines[2].startswith("whole network") and lines[-1].startswith("budget SLO/2")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--slo-ms", "20"], "--slo-ms goes with --exceeding"),
        (["--seconds", "20"], "--seconds goes with --exceeding"),
        (["--capacity", "20"], "--capacity goes with --exceeding"),
        (["--exceeding", "0.1", "--slo-ms", "20"], "a bundle, --trace and --slo-ms"),
        (["--exceeding", "0.1", "--trace", "T"], "a bundle, --trace and --slo-ms"),
        (["--exceeding", "0.1", "--trace", "T", "--slo-ms", "0"], "--slo-ms holds 0"),
        (
            ["--exceeding", "0.1", "--trace", "T", "--slo-ms", "9", "--budget-ms", "2"],
            "--budget-ms",
        ),
        (["--exceeding", "0.1", "--trace", "T", "--slo-ms", "9", "--samples", "2"], "--samples"),
        (
            ["--exceeding", "0.1", "--trace", "T", "--slo-ms", "9", "--discipline", "oldest"],
            "--disc",
        ),
        (["--exceeding", "2", "--trace", "T", "--slo-ms", "9"], "share is 2"),
        (["--exceeding", "0.001", "--trace", "T", "--slo-ms", "9"], "at least 1000 s long"),
        (["--exceeding", "0.1", "--trace", "T", "--slo-ms", "9", "--capacity", "-1"], "is -1"),
        (["--exceeding", "0.1", "--trace", "gone", "--slo-ms", "9"], "gone is no trace"),
    ],
)
def test_flags_of_overload_that_make_no_sense_are_named(
    tmp_path: Path, shipped_bundle: Path, flags: list[str], sentence: str
) -> None:
    (tmp_path / "T").write_text("0\n1\n")
    paths = [str(tmp_path / flag) if flag == "T" else flag for flag in flags]
    args = parsed(str(shipped_bundle), *paths)
    with pytest.raises(ValueError, match=sentence):
        run(args)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "give a bundle, --costs or --cost-table"),
        (["--costs", "1,2"], "give a bundle, whose scheduler chooses"),
        (["--costs", "2,1", "--exit-rates", "1,0"], "give rising milliseconds"),
        (["--costs", "1,2", "--exit-rates", "0.5,0.2"], "sum to 0.7"),
        (["--costs", "1,2", "--exit-rates", "1"], "give 2 of them"),
        (["--costs", "1,2", "--exit-rates", "1.5,-0.5"], "0 or more"),
        (["--free-rows", "4", "--exit-rates", "1"], "--free-rows goes with --costs"),
        ([*RATES, "--bursts", "3"], "--bursts goes with --rate"),
        ([*RATES, "--rate", "0"], "above 0"),
        ([*RATES[:-1], "0"], "--samples is 0"),
        ([*RATES, "--workers", "0"], "workers is 0"),
        ([*RATES, "--free-rows", "0"], "free_rows is 0"),
    ],
)
def test_flags_that_make_no_sense_are_named(flags: list[str], sentence: str) -> None:
    args = parsed(*flags)
    with pytest.raises(ValueError, match=sentence):
        run(args)


def test_a_precision_that_the_bundle_lacks_is_refused(shipped_bundle: Path) -> None:
    args = parsed(str(shipped_bundle), "--precision", "float16")
    with pytest.raises(ValueError, match="holds no float16 network"):
        run(args)


def test_a_bundle_of_other_exits_is_refused(shipped_bundle: Path) -> None:
    args = parsed(str(shipped_bundle), "--costs", "1,2")
    with pytest.raises(ValueError, match="has 3 exits, the costs have 2"):
        run(args)


def test_a_profile_without_a_table_says_which_command_writes_it(
    tmp_path: Path, shipped_bundle: Path
) -> None:
    bundle = with_profile(shipped_bundle, tmp_path / "bundle", {"costs_ms": [1.0, 2.0]})
    args = parsed(str(bundle))
    with pytest.raises(ValueError, match=r"lacks 'batch_sizes'.*`eenet profile .*` writes it"):
        run(args)


def test_no_list_of_numbers_is_refused_by_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--costs", "1;2")
    assert "is not a list of numbers" in capsys.readouterr().err
