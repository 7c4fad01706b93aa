import json
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.bundle import Bundle, Manifest, load_bundle, rewrite_entry, rewrite_manifest
from models.data.dataset import DataConfig, Dataset, Split
from models.data.load import load_dataset
from profiling.calibration import Predictions, Recorded, load_predictions
from profiling.evaluation.evaluate import EVALUATED, evaluate, spread_budgets
from scheduler.fitted import save_scheduler
from scheduler.fitting.fit import fit_scheduler
from server.cli.main import main
from tests.bundles import recorded_of, scheduler_of, variant_of

pytestmark = pytest.mark.usefixtures("quick_fits")

MakeProbs = Callable[..., tuple[NDArray[np.float64], NDArray[np.int64]]]
COSTS = np.array([1.0, 2.0, 3.3])
FEW = ["--policies", "maxprob,stopping,oracle"]


def write_predictions(path: Path, make_probs: MakeProbs, rows: int = 200) -> Path:
    (seen, seen_labels), (unseen, unseen_labels) = make_probs(rows), make_probs(120, seed=1)
    np.savez(
        path,
        calibration_probs=seen.astype(np.float32),
        calibration_labels=seen_labels,
        test_probs=unseen.astype(np.float32),
        test_labels=unseen_labels,
    )
    return path


@pytest.fixture
def predictions(tmp_path: Path, make_probs: MakeProbs) -> Path:
    return write_predictions(tmp_path / "mine.npz", make_probs)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder for what is written."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def asked(predictions: Path, *more: str) -> list[str]:
    return ["evaluate", "--predictions", str(predictions), "--costs", "1,2,3.3", *more]


def everything_into(out: Path) -> list[str]:
    return [
        *("--json", str(out / "figures.json")),
        *("--exits", str(out / "exits.npz")),
        *("--report", str(out / "report")),
    ]


def figures(out: Path) -> dict[str, Any]:
    return json.loads((out / "figures.json").read_text())


def exits_in(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def check_exits(out: Path, recorded: Recorded, costs: NDArray[np.float64]) -> None:
    """Whether the exits and answers written are those that the figures are of."""
    results, written = figures(out)["results"], exits_in(out / "exits.npz")
    names = [f"{row['policy']}@{row['budget']}" for row in results]
    assert list(written) == [each for name in names for each in (name, f"{name}/answers")]
    labels = recorded.test.labels
    for row, name in zip(results, names, strict=True):
        taken, answers = written[name], written[f"{name}/answers"]
        assert taken.dtype == np.int8 and taken.shape == labels.shape
        assert answers.dtype == np.int32 and answers.shape == labels.shape
        assert row["test_cost"] == pytest.approx(costs[taken].mean())
        assert row["exit_rates"] == pytest.approx([(taken == k).mean() for k in range(len(costs))])
        assert row["test_accuracy"] == pytest.approx((answers == labels).mean())


def test_a_file_of_predictions_is_enough(
    predictions: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked(predictions, *FEW, *everything_into(out))) == 0
    said = capsys.readouterr()
    document = figures(out)
    assert (document["costs"], document["num_exits"]) == ([1, 2, 3.3], 3)
    check_exits(out, load_predictions(predictions), COSTS)
    results = {(row["policy"], row["budget"]): row for row in document["results"]}
    budgets = spread_budgets(COSTS)
    assert list(results) == [
        (policy, budget) for policy in ("maxprob", "stopping", "oracle") for budget in budgets
    ]
    for policy in ("maxprob", "stopping", "oracle"):
        (line,) = [line for line in said.out.splitlines() if line.startswith(policy)]
        rows = [results[policy, budget] for budget in budgets]
        assert re.findall(r"([\d.]+) \(([\d.]+)\)", line) == [
            (f"{100 * row['test_accuracy']:.2f}", f"{row['test_cost']:.3f}") for row in rows
        ]
    assert said.out.splitlines()[-1] == f"report: {out / 'report' / 'index.html'}"
    assert [line.split()[-2] for line in said.err.splitlines()][:2] == ["maxprob", "stopping"]


def test_the_document_has_the_keys_of_the_contract(predictions: Path, out: Path) -> None:
    assert main(asked(predictions, *FEW, "--json", str(out / "figures.json"))) == 0
    document = figures(out)
    assert set(document) >= {"costs", "num_exits", "exit_accuracy", "results"}
    for row in document["results"]:
        assert set(row) == {
            "policy",
            "budget",
            "feasible",
            "calibration_cost",
            "calibration_accuracy",
            "test_cost",
            "test_accuracy",
            "test_accuracy_ci95",
            "exit_rates",
            "fit_seconds",
        }
        assert row["feasible"] is True
        assert row["test_accuracy_ci95"][0] <= row["test_accuracy"] <= row["test_accuracy_ci95"][1]
    assert [path.name for path in out.iterdir()] == ["figures.json"]


@pytest.mark.slow
def test_all_policies_are_compared_where_none_is_named(predictions: Path, out: Path) -> None:
    files = ["--json", str(out / "figures.json"), "--exits", str(out / "exits.npz")]
    assert main(asked(predictions, "--budgets", "2", *files)) == 0
    assert [row["policy"] for row in figures(out)["results"]] == list(EVALUATED)
    assert {row["budget"] for row in figures(out)["results"]} == {2.0}
    check_exits(out, load_predictions(predictions), COSTS)


def test_several_budgets_may_be_given(predictions: Path, out: Path) -> None:
    budgets = ["--budgets", "1.25,3,2"]
    assert main(asked(predictions, *FEW, *budgets, "--json", str(out / "figures.json"))) == 0
    rows = figures(out)["results"]
    assert [row["budget"] for row in rows if row["policy"] == "oracle"] == [1.25, 3, 2]


@pytest.mark.slow
def test_the_report_is_whole_and_its_names_are_escaped(
    tmp_path: Path, make_probs: MakeProbs, out: Path
) -> None:
    predictions = write_predictions(tmp_path / "<u>a & b.npz", make_probs)
    assert main(asked(predictions, *FEW, "--report", str(out / "report"))) == 0
    page = (out / "report" / "index.html").read_text()
    assert "<u>" not in page and "&lt;u&gt;a &amp; b" in page
    images = re.findall(r'<img src="([^"]+)"', page)
    assert len(images) >= 5
    assert all((out / "report" / name).is_file() for name in images)


def test_exits_go_to_the_very_path_that_is_given(predictions: Path, out: Path) -> None:
    for name in ("exits", "exits.npz"):
        assert main(asked(predictions, "--policies", "oracle", "--exits", str(out / name))) == 0
    assert sorted(path.name for path in out.iterdir()) == ["exits", "exits.npz"]
    assert exits_in(out / "exits").keys() == exits_in(out / "exits.npz").keys()


@pytest.mark.slow
def test_a_seed_makes_every_run_the_same(predictions: Path, out: Path) -> None:
    for name in ("first", "second"):
        exits = ["--exits", str(out / name), "--seed", "3"]
        assert main(asked(predictions, "--policies", "stopping,eenet", *exits)) == 0
    assert (out / "first").read_bytes() == (out / "second").read_bytes()


def test_exits_do_not_depend_on_test_labels(predictions: Path, out: Path) -> None:
    policies = ["--policies", "stopping,maxprob-opt"]
    assert main(asked(predictions, *policies, "--exits", str(out / "before.npz"))) == 0
    with np.load(predictions) as file:
        arrays = dict(file)
    np.savez(predictions, **arrays | {"test_labels": arrays["test_labels"][::-1]})  # type: ignore[arg-type]
    assert main(asked(predictions, *policies, "--exits", str(out / "after.npz"))) == 0
    before, after = exits_in(out / "before.npz"), exits_in(out / "after.npz")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


BAD_FLAGS = {
    "costs not rising": (["--costs", "1,2,2"], "cost 2 is 2, no more than cost 1, 2"),
    "too few costs": (["--costs", "1,2"], "there are 2 costs for 3 exits"),
    "too many costs": (["--costs", "1,2,3,4"], "there are 4 costs for 3 exits"),
    "costs not finite": (["--costs", "1,2,inf"], "not all finite and above 0"),
    "costs of nothing": (["--costs", "0,1,2"], "not all finite and above 0"),
    "budget too small": (["--budgets", "0.5"], "budget 0 is 0.5, outside 1 to 3.3"),
    "budget of nothing": (["--budgets", "0"], "budget 0 is 0, outside 1 to 3.3"),
    "budget too large": (["--budgets", "2,4"], "budget 1 is 4, outside 1 to 3.3"),
    "budget not a number": (["--budgets", "nan"], "budget 0 is nan, outside 1 to 3.3"),
    "unknown policy": (["--policies", "maxprob,best"], "unknown policy 'best'; choose from"),
    "no policy": (["--policies", ""], "unknown policy ''; choose from"),
}


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("eenet: ") and said.out == ""
    return line


@pytest.mark.parametrize("bad", BAD_FLAGS)
def test_a_flag_that_makes_no_sense_is_one_sentence_and_nothing_is_written(
    predictions: Path, out: Path, capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    flags, sentence = BAD_FLAGS[bad]
    assert main(asked(predictions, *everything_into(out), *flags)) == 2
    assert sentence in complaint(capsys)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("flag", ["--costs", "--budgets"])
def test_what_is_no_list_of_numbers_is_told_with_the_usage(
    predictions: Path, out: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(asked(predictions, *everything_into(out), flag, "1,two,3"))
    assert ended.value.code == 2
    assert f"argument {flag}: '1,two,3' is not a list" in capsys.readouterr().err.splitlines()[-1]
    assert list(out.iterdir()) == []


def test_predictions_need_costs(
    predictions: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--predictions", str(predictions), *everything_into(out)]
    assert main(command) == 2
    assert "--predictions needs --costs" in complaint(capsys)
    assert list(out.iterdir()) == []


def test_either_a_bundle_or_predictions_are_given(
    predictions: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for subject in ([], ["bundle", "--predictions", str(predictions)]):
        command = ["evaluate", *subject, "--costs", "1,2,3.3", *everything_into(out)]
        assert main(command) == 2
        assert "give either a bundle or --predictions" in complaint(capsys)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("flag", ["--json", "--exits", "--report"])
def test_a_folder_that_is_missing_is_told_before_anything_is_fitted(
    predictions: Path, out: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    elsewhere = [flag, str(out / "nowhere" / "file")]
    assert main(asked(predictions, *everything_into(out), *elsewhere)) == 2
    assert f"{out / 'nowhere'} does not exist" in complaint(capsys)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "index", "value", "sentence"),
    [
        ("test_probs", (1, 5, 0), np.nan, "test_probs[1, 5] holds NaN"),
        ("calibration_probs", (0, 3), 0.5, "calibration_probs[0, 3] sums to 2"),
        ("test_labels", 7, 4, "test_labels[7] is 4, outside the classes 0 to 3"),
    ],
)
def test_a_bad_array_is_one_sentence_and_nothing_is_written(
    predictions: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    index: Any,
    value: float,
    sentence: str,
) -> None:
    with np.load(predictions) as file:
        arrays = dict(file)
    arrays[name][index] = value
    np.savez(predictions, **arrays)
    assert main(asked(predictions, *everything_into(out))) == 2
    assert sentence in complaint(capsys)
    assert list(out.iterdir()) == []


def test_predictions_that_are_missing_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked(tmp_path / "nowhere.npz")) == 2
    assert "nowhere.npz" in complaint(capsys)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Twenty training and fifteen test images of noise for each of four classes."""
    rng = np.random.default_rng(0)
    for part, rows in (("train", 20), ("test", 15)):
        for name in ("ape", "bee", "cat", "dog"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for index in range(rows):
                pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / f"data/{part}/{name}/{index}.png")
    return tmp_path / "data"


@pytest.fixture
def bundle(make_bundle: Callable[[Recorded], Path], dataset: Path, make_probs: MakeProbs) -> Path:
    """Predictions of the dataset's images, and `stopping` fitted to other ones."""
    data = load_dataset(DataConfig(str(dataset), calibration_size=40))
    return write_bundle(make_bundle, data, make_probs)


def write_bundle(
    make_bundle: Callable[[Recorded], Path], data: Dataset, make_probs: MakeProbs
) -> Path:
    def recorded(split: Split) -> Predictions:
        probs, labels = make_probs(len(split.labels), labels=split.labels)
        return Predictions(np.log(probs).astype(np.float16), labels)

    certification = data.certification and recorded(data.certification)
    folder = make_bundle(Recorded(recorded(data.calibration), certification, recorded(data.test)))
    probs, labels = make_probs(50, seed=8)
    place = folder / "float32/schedulers/stopping"
    place.mkdir()
    save_scheduler(fit_scheduler("stopping", np.log(probs), labels, COSTS), place)
    (folder / "float32/profile.json").write_text(json.dumps({"costs_ms": [7.0, 8.0, 9.0]}))
    manifest = Manifest.model_validate_json((folder / "bundle.json").read_text())
    schedulers = {"stopping": "float32/schedulers/stopping"}
    variant = Bundle(folder, manifest).variant()
    rewrite_entry(variant, schedulers=schedulers, policy="stopping")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_bundle_is_judged_with_the_scheduler_and_the_costs_it_has(
    bundle: Path, out: Path
) -> None:
    before = contents(bundle)
    command = ["evaluate", str(bundle), "--policies", "maxprob,stopping", *everything_into(out)]
    assert main(command) == 0
    document, recorded = figures(out), recorded_of(bundle)
    assert document["costs"] == COSTS.tolist()
    check_exits(out, recorded, COSTS)
    own = [row for row in document["results"] if row["policy"] == "stopping"]
    expected = evaluate(scheduler_of(bundle), recorded, spread_budgets(COSTS))
    assert own == json.loads(json.dumps([row._asdict() for row in expected]))
    assert all(row["fit_seconds"] > 0 for row in document["results"] if row not in own)
    assert contents(bundle) == before
    page = (out / "report" / "index.html").read_text()
    assert "pets: exit policies compared" in page and "cat" in page


def test_at_other_costs_the_bundles_policy_is_fitted_anew(bundle: Path, out: Path) -> None:
    command = ["evaluate", str(bundle), "--costs", "10,20,30", "--policies", "stopping"]
    assert main([*command, "--json", str(out / "figures.json")]) == 0
    document = figures(out)
    assert document["costs"] == [10, 20, 30]
    assert all(row["feasible"] and row["fit_seconds"] > 0 for row in document["results"])


def test_costs_that_do_not_fit_a_bundle_are_told(
    bundle: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(bundle), "--costs", "1,2", *everything_into(out)]) == 2
    assert "there are 2 costs for 3 exits" in complaint(capsys)
    assert list(out.iterdir()) == []


def test_a_damaged_bundle_is_one_sentence(
    bundle: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variant_of(bundle).predictions.write_bytes(b"other")
    assert main(["evaluate", str(bundle), *everything_into(out)]) == 2
    assert "predictions.npz is damaged" in complaint(capsys)
    assert list(out.iterdir()) == []


@pytest.mark.slow
def test_the_data_sets_images_are_the_examples_of_the_report(
    bundle: Path, dataset: Path, out: Path
) -> None:
    command = ["evaluate", str(bundle), "--policies", "maxprob", "--dataset", str(dataset)]
    assert main([*command, "--report", str(out / "report")]) == 0
    assert "<image " in (out / "report" / "examples.svg").read_text()
    assert 'src="examples.svg"' in (out / "report" / "index.html").read_text()


@pytest.mark.slow
def test_the_examples_are_the_test_rows_that_the_bundle_reports_on(
    make_bundle: Callable[[Recorded], Path], dataset: Path, make_probs: MakeProbs, out: Path
) -> None:
    split: dict[str, Any] = {"calibration_from": "test", "seed": 3, "stratified": True}
    data = load_dataset(
        DataConfig(str(dataset), calibration_size=20, certification_size=10, **split)
    )
    bundle = write_bundle(make_bundle, data, make_probs)
    command = ["evaluate", str(bundle), "--policies", "maxprob", "--dataset", str(dataset)]
    assert main([*command, "--report", str(out / "report")]) == 2  # it does not know the split
    loaded = load_bundle(bundle)
    rewrite_manifest(loaded, training=loaded.manifest.training | split)
    assert main([*command, "--report", str(out / "report")]) == 0
    assert "<image " in (out / "report" / "examples.svg").read_text()


def test_a_precision_is_one_of_a_bundle(
    predictions: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked(predictions, "--precision", "int8")) == 2
    assert "--precision chooses a network of a bundle" in complaint(capsys)
    assert main(["evaluate", str(bundle), "--precision", "int8"]) == 2
    assert "holds no int8 network" in complaint(capsys)


def test_images_of_another_data_set_are_refused(
    bundle: Path, dataset: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(dataset / "test/ape/0.png", dataset / "test/bee/ape.png")
    command = ["evaluate", str(bundle), "--dataset", str(dataset), *everything_into(out)]
    assert main(command) == 2
    assert "does not have the test labels of the predictions" in complaint(capsys)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("kind", ["text_bundle", "mask_bundle"])
@pytest.mark.slow
def test_bundles_of_every_task_are_judged(
    request: pytest.FixtureRequest, out: Path, kind: str
) -> None:
    bundle = request.getfixturevalue(kind)
    few = ["--policies", "maxprob,oracle"]
    assert main(["evaluate", str(bundle), *few, *everything_into(out)]) == 0
    document, recorded = figures(out), recorded_of(bundle)
    assert document["exit_accuracy"] == pytest.approx(recorded.test.correct.mean(0).tolist())
    assert len(document["costs"]) == document["num_exits"] == 2
    written = exits_in(out / "exits.npz")
    for row in document["results"]:
        taken = written[f"{row['policy']}@{row['budget']}"]
        assert taken.shape == (recorded.test.log_probs.shape[1],)
        right = (written[f"{row['policy']}@{row['budget']}/answers"] == recorded.test.labels).mean()
        assert row["test_accuracy"] == pytest.approx(right)
    assert (out / "report" / "index.html").is_file()


@pytest.mark.slow
def test_texts_are_no_examples_of_a_report(
    text_bundle: Path, reviews: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(text_bundle), "--dataset", str(reviews), *everything_into(out)]
    assert main(command) == 2
    assert "holds texts" in complaint(capsys)
    assert list(out.iterdir()) == []


@pytest.mark.slow
def test_the_images_of_a_segmentation_are_the_examples_of_its_report(
    mask_bundle: Path, out: Path, drawing_few: Callable[[], AbstractContextManager[None]]
) -> None:
    command = ["evaluate", str(mask_bundle), "--policies", "maxprob", "--dataset", "shapes"]
    with drawing_few():
        assert main([*command, "--report", str(out / "report")]) == 0
    assert "<image " in (out / "report" / "examples.svg").read_text()
