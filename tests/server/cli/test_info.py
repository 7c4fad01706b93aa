import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from models.bundle import load_bundle
from scheduler.fitted import load_scheduler
from server.cli.main import main
from server.pipeline.refit import refit
from tests.bundles import recorded_of, variant_of


def described(capsys: pytest.CaptureFixture[str], folder: Path) -> dict[str, Any]:
    assert main(["info", str(folder), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_images_are_described(capsys: pytest.CaptureFixture[str], shipped_bundle: Path) -> None:
    variant = variant_of(shipped_bundle)
    manifest, entry = variant.bundle.manifest, variant.entry
    told = described(capsys, shipped_bundle)
    assert (told["name"], told["task"]) == (manifest.name, "image")
    assert told["classes"] == list(manifest.classes)
    assert told["input"] == {"kind": "image", "height": 32, "width": 32}
    assert list(told["precisions"]) == list(variant.bundle.precisions)
    shown = told["precisions"][variant.precision]
    assert (shown["policy"], shown["schedulers"]) == (entry.policy, list(entry.schedulers))
    assert shown["default_budget_ms"] == entry.default_budget_ms
    reached = [each["test_accuracy"] for each in shown["exits"]]
    assert reached == pytest.approx(manifest.training["test_accuracy"], abs=1e-4)
    costs = [each["cost_ms"] for each in shown["exits"]]
    assert costs == sorted(costs) and costs[0] > 0
    graphs = zip(variant.stage_files, variant.head_files, strict=True)
    sizes = [stage.stat().st_size + head.stat().st_size for stage, head in graphs]
    assert [each["bytes"] for each in shown["exits"]] == sizes
    assert (
        told["bytes"]
        == sum(path.stat().st_size for path in shipped_bundle.rglob("*") if path.is_file())
        - (shipped_bundle / "bundle.json").stat().st_size
    )
    assert sum(shown["at_default_budget"]["exit_rates"]) == pytest.approx(1, abs=1e-3)


def test_texts_are_described(capsys: pytest.CaptureFixture[str], shipped_text_bundle: Path) -> None:
    told = described(capsys, shipped_text_bundle)
    manifest = load_bundle(shipped_text_bundle).manifest
    assert list(told["precisions"]) == list(manifest.precisions)
    assert manifest.trained is not None
    assert told["trained"]["accuracy"] == list(manifest.trained.accuracy)
    assert told["input"]["max_tokens"] == 128 and told["input"]["vocabulary"] > 10_000


def test_people_get_a_table(capsys: pytest.CaptureFixture[str], shipped_bundle: Path) -> None:
    assert main(["info", str(shipped_bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "10: airplane, automobile, bird" in lines[2]
    assert lines[3].split(maxsplit=1) == ["input", "images of 32x32"]
    bundle = load_bundle(shipped_bundle)
    exits = [[name, str(exit)] for name in bundle.precisions for exit in range(3)]
    table = lines[-len(exits) :]
    assert [line.split()[:2] for line in table] == exits
    accuracy = recorded_of(shipped_bundle).test.correct.mean(0)
    assert [float(line.split()[3]) for line in table[:3]] == pytest.approx(
        100 * accuracy, abs=0.006
    )
    budgets = lines[5 : 5 + len(bundle.precisions)]
    assert [line.split()[0] for line in budgets] == list(bundle.precisions)
    for line, name in zip(budgets, bundle.precisions, strict=True):
        entry = bundle.variant(name).entry
        assert entry.policy in line and f"suggested budget {entry.default_budget_ms:g} ms" in line


@pytest.mark.slow
@pytest.mark.usefixtures("quick_fits")
def test_all_schedulers_are_named(
    capsys: pytest.CaptureFixture[str], shipped_bundle: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(shipped_bundle, tmp_path / "bundle"))
    before = variant_of(folder).entry.policy
    refit(folder, policy="entropy")
    assert main(["info", str(folder)]) == 0
    others = [name for name in variant_of(folder).entry.schedulers if name != "entropy"]
    assert before in others
    assert f"entropy (also {', '.join(others)})" in capsys.readouterr().out


@pytest.mark.usefixtures("quick_fits")
def test_every_scheduler_says_what_it_expects_at_the_suggested_budget(
    capsys: pytest.CaptureFixture[str], shipped_bundle: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(shipped_bundle, tmp_path / "bundle"))
    refit(folder, policy="stopping", label_free=True)
    shown = described(capsys, folder)["precisions"]["int8"]
    variant = variant_of(folder)
    budget_ms = variant.entry.default_budget_ms
    assert list(shown["expected"]) == shown["schedulers"] == list(variant.entry.schedulers)
    for name, expected in shown["expected"].items():
        point = load_scheduler(variant.scheduler(name)).frontier.at_cost(budget_ms)
        label_free = name.endswith("-label-free")
        known = "expected_agreement" if label_free else "expected_accuracy"
        assert expected[known] == pytest.approx(point.expected_accuracy, abs=1e-4)
        assert expected["expected_cost_ms"] <= budget_ms
    assert shown["expected"][variant.entry.policy] == shown["at_default_budget"]
    assert main(["info", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (of_labels,) = [line for line in lines if line.startswith("int8        stopping   ")]
    (free,) = [line for line in lines if line.startswith("int8        stopping-label-free")]
    assert "% right" in of_labels and "% as the last exit" in free


def test_a_folder_without_a_bundle_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["info", str(tmp_path)]) == 2
    assert "bundle.json does not exist" in capsys.readouterr().err
