import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from models.bundle import load_bundle
from models.runtime.instruction_set import integer_instructions
from models.stage_costs import read_stage_costs
from server.cli.main import main
from tests.bundles import rewrite_as_format_1, variant_of

QUICKLY = ("--batch-sizes", "1,3", "--repeats", "3")


@pytest.fixture
def bundle(shipped_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped_bundle, tmp_path / "bundle"))


@pytest.fixture
def never_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistakes are to be found before the long work."""

    def never(*given: object, **options: object) -> None:
        raise AssertionError("the mistake was not found before the long work")

    monkeypatch.setattr("server.cli.profile.measure_latency", never)


def profile(folder: Path, *options: str) -> None:
    assert main(["profile", str(folder), *options]) == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_bundle_gets_this_machines_latencies_and_is_whole(bundle: Path) -> None:
    before, manifest = contents(bundle), load_bundle(bundle).manifest
    profile(bundle, *QUICKLY)
    after, changed = contents(bundle), load_bundle(bundle).manifest
    assert {name for name in after if after[name] != before.get(name)} == {
        "bundle.json", variant_of(bundle).profile.relative_to(bundle).as_posix(),
    }  # fmt: skip
    assert set(after) == set(before)
    same = {"files", "format_version"}
    assert changed.model_dump(exclude=same) == manifest.model_dump(exclude=same)
    written = json.loads(variant_of(bundle).profile.read_text())
    assert (written["device"], written["threads"]) == ("cpu", 1)
    assert list(written["latency_ms"]) == ["1", "3"]
    for latency in written["latency_ms"].values():
        for part in ("stages", "heads"):
            percentiles = np.array(latency[part])
            assert percentiles.shape == (3, 3) and (percentiles > 0).all()
            assert (np.diff(percentiles, axis=1) >= 0).all()
    costs = read_stage_costs(variant_of(bundle).profile)
    assert costs.batch_sizes == (1, 3) and costs.num_exits == 3
    assert costs.costs_ms == pytest.approx(written["costs_ms"], abs=1e-3)


def test_texts_are_profiled_too(shipped_text_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shipped_text_bundle, tmp_path / "bundle"))
    profile(folder, "--batch-sizes", "1", "--repeats", "1")
    load_bundle(folder)
    assert read_stage_costs(variant_of(folder).profile).num_exits == 4


def test_it_prints_a_line_for_every_size_and_exit_and_the_line_through_them(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile(bundle, *QUICKLY)
    said = capsys.readouterr()
    head, *lines = said.out.splitlines()
    assert head.split() == ["batch", "exit", "p50", "ms", "p90", "ms", "p99", "ms"]
    numbers = [[float(each) for each in line.split()] for line in lines[:6]]
    assert [row[:2] for row in numbers] == [[size, exit] for size in (1, 3) for exit in range(3)]
    assert all(row[2:] == sorted(row[2:]) for row in numbers)
    assert numbers[0][2] < numbers[1][2] < numbers[2][2]
    assert [line.partition(":")[0] for line in lines[6:]] == ["stage 0", "stage 1", "stage 2"]
    assert all(line.endswith(" ms a batch") for line in lines[6:])
    assert said.err == (
        f"measuring {variant_of(bundle).precision} in batches of 1, 3 on cpu (integer "
        f"instructions: {integer_instructions()}) ...\n"
    )


def test_as_json_standard_output_is_what_was_written(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile(bundle, *QUICKLY, "--json")
    assert json.loads(capsys.readouterr().out) == json.loads(variant_of(bundle).profile.read_text())


def test_sizes_may_be_given_in_any_order_and_twice(bundle: Path) -> None:
    profile(bundle, "--batch-sizes", "2,1,2", "--repeats", "1")
    assert read_stage_costs(variant_of(bundle).profile).batch_sizes == (1, 2)


def test_a_bundle_of_format_1_keeps_its_places(bundle: Path) -> None:
    for precision in load_bundle(bundle).precisions:
        if precision != "float32":
            pytest.skip("the shipped bundle holds more than format 1 can")
    if json.loads((bundle / "bundle.json").read_text())["format_version"] == 2:
        rewrite_as_format_1(bundle)
    before = contents(bundle)
    profile(bundle, *QUICKLY)
    assert set(contents(bundle)) == set(before)
    assert contents(bundle)["profile.json"] != before["profile.json"]
    assert json.loads((bundle / "bundle.json").read_text())["format_version"] == 2
    entry = variant_of(bundle).entry
    assert (entry.folder, entry.predictions) == ("", "calibration.npz")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--precision", "float16"), "holds no float16 network"),
        (("--repeats", "0"), "--repeats is 0; give 1 or more"),
        (("--backend", "abacus"), "bad setting backend"),
        (("--device", "warp"), "bad setting device"),
        (("--torch-mode", "fast"), "bad setting torch_mode"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_touched(
    bundle: Path,
    never_measured: None,
    options: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(bundle)
    assert main(["profile", str(bundle), *options]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("eenet: ") and said in sentence
    assert contents(bundle) == before


@pytest.mark.parametrize("sizes", ["2,4", "0,1", "-1,1", "1,x", "", "1.5", "1,,2"])
def test_sizes_that_are_none_are_refused(
    sizes: str, never_measured: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["profile", str(tmp_path), f"--batch-sizes={sizes}"])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"'{sizes}' is not a list of batch sizes such as 1,4,16; it must contain 1" in last


def test_a_folder_that_is_no_bundle_is_named(
    tmp_path: Path, never_measured: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", str(tmp_path / "nowhere")]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "nowhere" in sentence and "does not exist" in sentence


def test_a_damaged_bundle_is_not_profiled(
    bundle: Path, never_measured: None, capsys: pytest.CaptureFixture[str]
) -> None:
    variant_of(bundle).stage_files[1].write_bytes(b"damaged")
    assert main(["profile", str(bundle)]) == 2
    assert "1.onnx" in capsys.readouterr().err
