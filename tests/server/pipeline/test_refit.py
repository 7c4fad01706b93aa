import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import server.pipeline.refit
from models.bundle import load_bundle, rewrite_entry
from profiling.calibration import Predictions, Recorded
from profiling.evaluation.evaluate import evaluate, spread_budgets
from scheduler.eenet import EENetPolicy, load_published_scheduler
from scheduler.fitted import FILES, Scheduler, load_scheduler
from scheduler.policies import POLICIES
from server.cli.main import main
from server.pipeline.live import LiveRows
from server.pipeline.refit import profiled_costs, refit
from tests.bundles import (
    add_int8,
    recorded_of,
    rewrite_as_format_1,
    scheduler_of,
    variant_of,
)

pytestmark = pytest.mark.usefixtures("quick_fits")

MakeProbs = Callable[..., tuple[NDArray[np.float64], NDArray[np.int64]]]
MakeBundle = Callable[[Recorded], Path]
COSTS = [1.0, 2.0, 3.3]


def recorded_of_rows(make_probs: MakeProbs, rows: int) -> Recorded:
    (seen, seen_labels), (unseen, unseen_labels) = make_probs(rows), make_probs(100, seed=1)
    return Recorded(
        Predictions(np.log(seen).astype(np.float16), seen_labels),
        None,
        Predictions(np.log(unseen).astype(np.float16), unseen_labels),
    )


@pytest.fixture
def bundle(make_bundle: MakeBundle, make_probs: MakeProbs) -> Path:
    return make_bundle(recorded_of_rows(make_probs, rows=200))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def budget_of(bundle: Path) -> float:
    budget = variant_of(bundle).entry.default_budget_ms
    assert budget is not None
    return budget


@pytest.mark.parametrize("policy", POLICIES)
def test_the_bundle_holds_the_asked_policy_and_is_whole(
    bundle: Path, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, manifest = contents(bundle.parent), load_bundle(bundle).manifest
    assert main(["fit", str(bundle), "--policy", policy]) == 0
    after, changed = contents(bundle.parent), load_bundle(bundle).manifest
    written = {f"bundle/float32/schedulers/{policy}/{file}" for file in FILES}
    assert {name for name in after if after[name] != before.get(name)} == {
        "bundle/bundle.json",
        *written,
    }
    assert set(after) == set(before) | written  # an earlier one of another policy stays
    other = {"precisions", "files"}
    assert changed.model_dump(exclude=other) == manifest.model_dump(exclude=other)
    entry = changed.precisions["float32"]
    assert entry.policy == policy and set(entry.schedulers) == {"maxprob", policy}
    other = {"policy", "schedulers", "default_budget_ms"}
    assert entry.model_dump(exclude=other) == manifest.precisions["float32"].model_dump(
        exclude=other
    )
    fitted, frontier, _ = scheduler_of(bundle)
    assert (fitted.kind, fitted.num_exits) == (policy, 3)
    assert frontier.costs_ms.tolist() == COSTS
    assert COSTS[0] <= budget_of(bundle) <= COSTS[-1] + 0.01
    assert f"{policy} for float32, {len(frontier)} points" in capsys.readouterr().out


def test_the_default_budget_is_where_half_a_point_is_given_up(bundle: Path) -> None:
    refit(bundle, policy="stopping")
    frontier = scheduler_of(bundle).frontier
    best = frontier.expected_accuracy.max()
    assert frontier.at_cost(budget_of(bundle)).expected_accuracy >= best - 0.005
    assert frontier.at_cost(budget_of(bundle) - 0.02).expected_accuracy < best - 0.005


def test_stopping_is_fitted_where_no_policy_is_named(bundle: Path) -> None:
    assert main(["fit", str(bundle)]) == 0
    assert scheduler_of(bundle).policy.kind == "stopping"


@pytest.mark.slow
def test_fitting_again_changes_nothing(bundle: Path) -> None:
    assert main(["fit", str(bundle), "--policy", "eenet", "--seed", "3"]) == 0
    before = contents(bundle)
    assert main(["fit", str(bundle), "--policy", "eenet", "--seed", "3"]) == 0
    assert contents(bundle) == before
    assert main(["fit", str(bundle), "--policy", "eenet", "--seed", "4"]) == 0
    assert contents(bundle) != before


def test_fitted_schedulers_are_kept_and_the_last_one_is_started_with(bundle: Path) -> None:
    refit(bundle, policy="entropy")
    kept = contents(bundle)
    refit(bundle, policy="patience")
    refit(bundle, policy="stopping")
    variant = variant_of(bundle)
    assert list(variant.entry.schedulers) == ["maxprob", "entropy", "patience", "stopping"]
    for file in FILES:
        name = f"float32/schedulers/entropy/{file}"
        assert contents(bundle)[name] == kept[name]
    assert load_scheduler(variant.scheduler("entropy")).policy.kind == "entropy"
    assert scheduler_of(bundle).policy.kind == "stopping"
    refit(bundle, policy="entropy", costs_ms=np.array([2.0, 3.0, 9.0]))
    assert scheduler_of(bundle).frontier.costs_ms.tolist() == [2, 3, 9]
    assert list(variant_of(bundle).entry.schedulers) == list(variant.entry.schedulers)


def test_a_label_free_fit_is_kept_beside_the_policy_in_command(bundle: Path) -> None:
    refit(bundle, policy="stopping")
    before = variant_of(bundle).entry
    refit(bundle, policy="stopping", label_free=True)
    after = variant_of(bundle).entry
    assert (after.policy, after.default_budget_ms) == ("stopping", before.default_budget_ms)
    assert list(after.schedulers) == [*before.schedulers, "stopping-label-free"]


def test_a_label_free_fit_that_is_in_command_renews_the_default_budget(bundle: Path) -> None:
    refit(bundle, policy="stopping", label_free=True)
    rewrite_entry(variant_of(bundle), policy="stopping-label-free", default_budget_ms=1e6)
    refit(bundle, policy="stopping", label_free=True)
    assert variant_of(bundle).entry.policy == "stopping-label-free"
    assert budget_of(bundle) <= COSTS[-1]


@pytest.mark.parametrize("label_free", [False, True])
def test_a_prior_is_the_share_of_labels_or_of_the_last_exits_answers(
    bundle: Path, label_free: bool, tmp_path: Path
) -> None:
    shares, calibration = [0.7, 0.1, 0.1, 0.1], recorded_of(bundle).calibration
    prior = tmp_path / "prior.txt"
    prior.write_text("\n".join(map(str, shares)) + "\n")
    scheduler = refit(bundle, policy="maxprob", label_free=label_free, prior=str(prior)).scheduler
    answers = calibration.log_probs.argmax(-1)
    classes = answers[-1] if label_free else calibration.labels
    right = answers[0] == classes
    expected = sum(s * right[classes == c].mean() for c, s in enumerate(shares))
    assert scheduler.frontier.expected_accuracy[0] == pytest.approx(expected, abs=1e-9)


def test_the_command_says_what_a_prior_means_and_what_is_wrong_with_one(
    bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["fit", str(bundle), "--policy", "maxprob", "--prior", "uniform"]) == 0
    assert "fitted for the class shares of --prior uniform" in capsys.readouterr().out
    before = contents(bundle)
    file = tmp_path / "prior.txt"
    file.write_text("0.5\n0.5\n")
    assert main(["fit", str(bundle), "--policy", "maxprob", "--prior", str(file)]) == 2
    assert "2 shares for 4 classes" in capsys.readouterr().err
    assert contents(bundle) == before


def test_imbalance_is_told_unless_a_prior_is_given(
    make_bundle: MakeBundle, make_probs: MakeProbs, caplog: pytest.LogCaptureFixture
) -> None:
    labels = np.repeat([0, 1, 2, 3], [120, 40, 20, 20])
    probs, _ = make_probs(200, labels=labels)
    rows = Predictions(np.log(probs).astype(np.float16), labels)
    bundle = make_bundle(Recorded(rows, None, rows))
    refit(bundle, policy="maxprob")
    assert "imbalanced" in caplog.text and "60 %" in caplog.text and "10 %" in caplog.text
    caplog.clear()
    refit(bundle, policy="maxprob", prior="uniform")
    assert caplog.text == ""


def test_one_precision_is_fitted_and_the_others_stay(bundle: Path) -> None:
    add_int8(bundle)
    before = load_bundle(bundle)
    assert main(["fit", str(bundle), "--policy", "entropy", "--precision", "int8"]) == 0
    after = load_bundle(bundle)
    fitted = load_scheduler(after.variant("int8").scheduler())
    assert (fitted.policy.kind, fitted.frontier.costs_ms.tolist()) == ("entropy", [0.5, 1.0, 1.5])
    assert after.variant("float32").entry == before.variant("float32").entry
    assert after.precisions == before.precisions


def test_a_precision_that_the_bundle_lacks_is_told(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(bundle)
    assert main(["fit", str(bundle), "--precision", "int8"]) == 2
    assert "holds no int8 network, only float32; build it" in complaint(capsys)
    assert contents(bundle) == before


@pytest.mark.parametrize("policy", ["maxprob", "entropy"])
def test_a_bundle_of_format_1_is_fitted_where_its_files_are(bundle: Path, policy: str) -> None:
    refit(bundle, policy="maxprob")
    rewrite_as_format_1(bundle)
    before = contents(bundle)
    refit(bundle, policy=policy)
    written = json.loads((bundle / "bundle.json").read_text())
    entry = variant_of(bundle).entry
    assert (written["format_version"], entry.policy) == (2, policy)
    assert (entry.folder, entry.predictions) == ("", "calibration.npz")
    places = {"maxprob": ""} | ({"entropy": "schedulers/entropy"} if policy != "maxprob" else {})
    assert entry.schedulers == places
    assert scheduler_of(bundle).policy.kind == policy
    new = set(contents(bundle)) - set(before)
    assert new == {f"{places[policy]}/{file}" for file in FILES if places[policy]}


def test_rows_to_certify_stay_as_they_are(make_bundle: MakeBundle, make_probs: MakeProbs) -> None:
    recorded = recorded_of_rows(make_probs, rows=200)
    bundle = make_bundle(recorded._replace(certification=recorded.test))
    live = LiveRows(recorded.calibration.log_probs, recorded.calibration.labels, "float32")
    refit(bundle, policy="entropy", live=live)
    kept = recorded_of(bundle).certification
    assert kept is not None
    assert np.array_equal(kept.log_probs, recorded.test.log_probs)
    assert np.array_equal(kept.labels, recorded.test.labels)


def test_other_costs_are_the_frontiers_and_the_profile_stays(bundle: Path) -> None:
    profile = variant_of(bundle).profile.read_bytes()
    assert main(["fit", str(bundle), "--costs", "10,12.5,40"]) == 0
    assert scheduler_of(bundle).frontier.costs_ms.tolist() == [10, 12.5, 40]
    assert 10 <= budget_of(bundle) <= 40.01
    assert variant_of(bundle).profile.read_bytes() == profile
    assert profiled_costs(variant_of(bundle).profile).tolist() == COSTS
    assert main(["fit", str(bundle)]) == 0
    assert scheduler_of(bundle).frontier.costs_ms.tolist() == COSTS


def test_the_json_holds_the_figures_of_the_table(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(bundle), "--policy", "maxprob", "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    shown = [line for line in printed.err.splitlines() if not line.endswith(" ...")]
    assert set(told) == {"bundle", "evaluations", "precisions"} and told["bundle"] == str(bundle)
    assert told["precisions"] == {"float32": {"evaluations": told["evaluations"]}}
    recorded, fitted = recorded_of(bundle), scheduler_of(bundle)
    expected = evaluate(fitted, recorded, spread_budgets(np.array(COSTS)))
    assert told["evaluations"] == json.loads(json.dumps([row._asdict() for row in expected]))
    assert len(shown) == 2 + len(expected)
    for line, row in zip(shown[2:], expected, strict=True):
        assert float(line.split()[1]) == pytest.approx(row.test_cost, abs=6e-4)


def published(path: Path, *, classes: int = 4, exits: int = 3) -> dict[str, NDArray[np.float32]]:
    """Weights as the published code leaves them; an exit's score is mostly its max probability."""
    rng, arrays = np.random.default_rng(0), {}
    for k in range(exits):
        arrays[f"exit{k}.score.prediction.weight"] = rng.normal(0, 0.05, (1, classes))
        arrays[f"exit{k}.score.confidence.weight"] = np.r_[0.8, rng.normal(0, 0.05, 1 + k)]
        arrays[f"exit{k}.assign.0.weight"] = rng.normal(0, 1, (5, classes + 2 + k))
        arrays[f"exit{k}.assign.0.bias"] = rng.normal(0, 1, 5)
        arrays[f"exit{k}.assign.2.weight"] = rng.normal(0, 1, (1, 5))
        arrays[f"exit{k}.assign.2.bias"] = rng.normal(0, 1, 1)
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return arrays


def test_published_weights_score_and_only_thresholds_are_fitted(
    bundle: Path, tmp_path: Path
) -> None:
    published(tmp_path / "paper.npz")
    weights = ["--weights", str(tmp_path / "paper.npz")]
    assert main(["fit", str(bundle), "--policy", "eenet", *weights]) == 0
    load_bundle(bundle)
    fitted, frontier, _ = scheduler_of(bundle)
    assert isinstance(fitted, EENetPolicy)
    given = load_published_scheduler(tmp_path / "paper.npz").scorer.weights
    for found, expected in zip(fitted.scorer.weights, given, strict=True):
        assert np.array_equal(found, expected)
    recorded = recorded_of(bundle)
    for row in evaluate(Scheduler(fitted, frontier), recorded, [1.3, 2.0, 3.0]):
        assert row.feasible and row.calibration_cost > 0.9 * row.budget


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The last of what is said on stderr; before it only steps are told."""
    *steps, last = capsys.readouterr().err.splitlines()
    assert all(step.startswith("fitting ") for step in steps)
    assert last.startswith("eenet: ")
    return last


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ({"classes": 5}, "3 exits and 5 classes"),
        ({"classes": 3}, "3 exits and 3 classes"),
        ({"exits": 2}, "2 exits and 4 classes"),
        ({"exits": 4}, "4 exits and 4 classes"),
    ],
)
def test_weights_of_another_network_are_told_and_change_nothing(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shape: dict[str, int],
    sentence: str,
) -> None:
    published(tmp_path / "paper.npz", **shape)
    before = contents(bundle.parent)
    weights = ["--weights", str(tmp_path / "paper.npz")]
    assert main(["fit", str(bundle), "--policy", "eenet", *weights]) == 2
    assert sentence in complaint(capsys)
    assert contents(bundle.parent) == before


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "eenet"])
def test_weights_are_for_eenet_alone(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str
) -> None:
    published(tmp_path / "paper.npz")
    before = contents(bundle.parent)
    weights = ["--weights", str(tmp_path / "paper.npz")]
    assert main(["fit", str(bundle), "--policy", policy, *weights]) == 2
    told = complaint(capsys)
    assert "'eenet'" in told and f"'{policy}'" in told
    assert contents(bundle.parent) == before


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--costs", "1,2"], "there are 2 costs for 3 exits"),
        (["--costs", "1,2,3,4"], "there are 4 costs for 3 exits"),
        (["--costs", "1,3,2"], "cost 2 is 2, no more than cost 1, 3"),
        (["--costs", "1,2,2"], "cost 2 is 2, no more than cost 1, 2"),
        (["--costs", "0,1,2"], "not all finite and above 0"),
        (["--costs", "1,2,inf"], "not all finite and above 0"),
        (["--costs", "1,nan,3"], "not all finite and above 0"),
        (["--policy", "eenet", "--weights", "nowhere.npz"], "nowhere.npz cannot be opened"),
        (["--seed", "-1"], "non-negative"),
    ],
)
def test_what_makes_no_sense_is_told_and_changes_nothing(
    bundle: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    before = contents(bundle.parent)
    assert main(["fit", str(bundle), *flags]) == 2
    assert sentence in complaint(capsys)
    assert contents(bundle.parent) == before


@pytest.mark.parametrize("flags", [["--costs", "1,two,3"], ["--policy", "oracle"]])
def test_a_flag_that_cannot_be_read_changes_nothing(
    bundle: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    before = contents(bundle.parent)
    with pytest.raises(SystemExit) as ended:
        main(["fit", str(bundle), *flags])
    assert ended.value.code == 2
    assert flags[0] in capsys.readouterr().err.splitlines()[-1]
    assert contents(bundle.parent) == before


def test_a_damaged_bundle_is_told_and_not_mended(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variant_of(bundle).head_files[1].write_bytes(b"other")
    before = contents(bundle.parent)
    assert main(["fit", str(bundle)]) == 2
    assert "heads/1.onnx is damaged" in complaint(capsys)
    assert contents(bundle.parent) == before


def test_too_few_calibration_rows_are_told(
    make_bundle: MakeBundle, make_probs: MakeProbs, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(recorded_of_rows(make_probs, rows=9))
    before = contents(bundle.parent)
    assert main(["fit", str(bundle)]) == 2
    assert "there are 9 calibration rows" in complaint(capsys)
    assert contents(bundle.parent) == before


def test_a_fit_that_fails_while_it_writes_leaves_the_bundle_as_it_was(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(scheduler: Scheduler, folder: Path) -> None:
        (folder / FILES[0]).write_text("half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(server.pipeline.refit, "save_scheduler", fill_the_disk)
    before = contents(bundle.parent)
    assert main(["fit", str(bundle)]) == 2
    assert "No space left" in complaint(capsys)
    assert contents(bundle.parent) == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("given", ["relative", "here", "linked"])
def test_the_bundle_may_be_named_in_any_way(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir(bundle if given == "here" else bundle.parent)
    if given == "linked":
        (bundle.parent / "current").symlink_to(bundle)
    named: dict[str, Any] = {"relative": "bundle", "here": ".", "linked": "current"}
    assert main(["fit", named[given], "--policy", "maxprob"]) == 0
    assert set(contents(bundle)) == {*load_bundle(bundle).manifest.files, "bundle.json"}
    assert scheduler_of(bundle).policy.kind == "maxprob"


@pytest.mark.parametrize("policy", ["stopping", "eenet"])
@pytest.mark.parametrize("kind", ["text_bundle", "mask_bundle"])
def test_bundles_of_every_task_can_be_fitted_again(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, policy: str
) -> None:
    bundle = Path(shutil.copytree(request.getfixturevalue(kind), tmp_path / "bundle"))
    before = load_bundle(bundle).manifest
    assert main(["fit", str(bundle), "--policy", policy]) == 0
    fitted, frontier, _ = scheduler_of(bundle)
    assert (fitted.kind, fitted.num_exits) == (policy, 2)
    assert frontier.costs_ms == pytest.approx(profiled_costs(variant_of(bundle).profile))
    after = load_bundle(bundle).manifest
    other = {"format_version", "precisions", "files"}
    assert after.model_dump(exclude=other) == before.model_dump(exclude=other)


@pytest.mark.slow
def test_the_shipped_bundle_can_be_fitted_again(shipped_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(shipped_bundle, tmp_path / "bundle"))
    refitted = refit(bundle, policy="stopping")
    assert load_bundle(bundle) == refitted.variant.bundle
    fitted, frontier, _ = scheduler_of(bundle)
    assert (fitted.kind, fitted.num_exits) == ("stopping", 3)
    assert frontier.costs_ms == pytest.approx(profiled_costs(variant_of(bundle).profile))
    for row in refitted.evaluations:
        assert row.feasible
        assert 0.88 * row.budget < row.test_cost < 1.02 * row.budget  # few points are fitted here
