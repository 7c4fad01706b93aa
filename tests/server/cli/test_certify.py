import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import rewrite_entry, rewrite_manifest
from profiling.calibration import Predictions, Recorded, load_predictions, save_recorded
from scheduler.fitted import load_scheduler
from scheduler.fitting.fit import fit_scheduler
from scheduler.guarantee import Promise, certify
from scheduler.policy import exits_taken, replay
from server.cli.main import main
from server.pipeline.refit import refit
from tests.bundles import recorded_of, scheduler_of, variant_of

pytestmark = pytest.mark.usefixtures("quick_fits")

MakeProbs = Callable[..., tuple[NDArray[np.float64], NDArray[np.int64]]]
COSTS = np.array([1.0, 2.0, 3.3])
PARTS = {"calibration": 200, "certification": 700, "test": 120}
DISAGREEMENT = ["--max-disagreement", "0.1"]
LOSS = ["--max-accuracy-loss", "0.1"]


@pytest.fixture
def predictions(tmp_path: Path, make_probs: MakeProbs) -> Path:
    arrays: dict[str, Any] = {}
    for seed, (part, rows) in enumerate(PARTS.items()):
        probs, arrays[f"{part}_labels"] = make_probs(rows, seed=seed)
        arrays[f"{part}_probs"] = probs.astype(np.float32)
    np.savez(tmp_path / "mine.npz", **arrays)
    return tmp_path / "mine.npz"


@pytest.fixture
def bundle(make_bundle: Callable[[Recorded], Path], make_probs: MakeProbs) -> Path:
    def part(rows: int, seed: int) -> Predictions:
        probs, labels = make_probs(rows, seed=seed)
        return Predictions(np.log(probs).astype(np.float16), labels)

    return make_bundle(Recorded(*(part(rows, seed) for seed, rows in enumerate(PARTS.values()))))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def asked(predictions: Path, *more: str) -> list[str]:
    return ["certify", "--predictions", str(predictions), "--costs", "1,2,3.3", *more]


def everything_into(out: Path) -> list[str]:
    return ["--json", str(out / "figures.json"), "--exits", str(out / "exits.npz")]


def figures(out: Path) -> dict[str, Any]:
    return json.loads((out / "figures.json").read_text())


def exits_in(out: Path) -> dict[str, NDArray[Any]]:
    with np.load(out / "exits.npz", allow_pickle=False) as file:
        return dict(file)


def test_a_file_of_predictions_is_certified_label_free(
    predictions: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked(predictions, *DISAGREEMENT, *everything_into(out))) == 0
    said = capsys.readouterr().out
    document, written = figures(out), exits_in(out)
    assert (document["epsilon"], document["confidence"], document["rows"]) == (0.1, 0.95, 700)
    assert document["certified"] and 0 < document["bound"] <= 0.1
    assert 1 <= document["calibration_cost"] < 3.3
    assert document["exits"] == str(out / "exits.npz")
    assert document["policy"] == "stopping-label-free"
    assert {name: array.dtype.name for name, array in written.items()} == {
        "exits": "int8",
        "answers": "int32",
        "last": "int32",
    }
    recorded = load_predictions(predictions)
    fitted = fit_scheduler("stopping", recorded.calibration.log_probs, None, COSTS)
    answers = recorded.test.combined(fitted.combiner).log_probs.argmax(-1)
    # Fitted to the last exit's answers, so that these stay its own.
    assert np.array_equal(written["last"], recorded.test.log_probs[-1].argmax(-1))
    rows = np.arange(PARTS["test"])
    assert np.array_equal(written["answers"], answers[written["exits"], rows])
    assert set(written["exits"].tolist()) <= {0, 1, 2} and written["exits"].min() < 2
    differ = 100 * (written["answers"] != written["last"]).mean()
    assert f"on 120 test rows {differ:.2f} % differ" in said
    assert f"upper bound {100 * document['bound']:.3f} %" in said
    assert "certified: at most 10 % of samples get another answer" in said


def test_other_promises_are_priced(
    predictions: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked(predictions, *DISAGREEMENT, *everything_into(out))) == 0
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split()[0] for line in lines] == ["0.5", "1", "2", "5"]
    others = figures(out)["others"]
    assert [other["epsilon"] for other in others] == [0.005, 0.01, 0.02, 0.05]
    assert [other["rows_needed"] for other in others] == [598, 299, 149, 59]
    costs = [other["expected_cost"] for other in others]
    assert costs == sorted(costs, reverse=True)
    for line, cost in zip(lines, costs, strict=True):
        assert f"{cost:.4g} ms, {100 * cost / 3.3:.1f} % of the whole network's" in line
    assert figures(out)["expected_cost"] <= costs[-1]


def test_exits_and_certificates_need_no_labels(predictions: Path, out: Path) -> None:
    assert main(asked(predictions, *DISAGREEMENT, *everything_into(out))) == 0
    before, exits = figures(out), exits_in(out)
    with np.load(predictions) as file:
        arrays = dict(file)
    np.savez(predictions, **{n: a[::-1] if "labels" in n else a for n, a in arrays.items()})
    assert main(asked(predictions, *DISAGREEMENT, *everything_into(out))) == 0
    assert figures(out) == before
    assert all(np.array_equal(exits[name], array) for name, array in exits_in(out).items())


def test_an_accuracy_loss_is_certified_with_labels(
    predictions: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked(predictions, *LOSS, *everything_into(out))) == 0
    document = figures(out)
    assert document["certified"] and -1 <= document["bound"] <= 0.1
    assert (document["policy"], document["measure"]) == ("stopping", "accuracy_loss")
    assert "accuracy is at most 10 points below" in capsys.readouterr().out


def test_a_promise_that_no_early_exit_keeps_runs_everything_to_the_end(
    predictions: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(predictions) as file:
        arrays = dict(file)
    early = arrays["certification_probs"][:-1]
    arrays["certification_probs"][:-1] = np.roll(early, 1, axis=-1)
    np.savez(predictions, **arrays)
    strict = ["--max-disagreement", "0.01"]
    assert main(asked(predictions, *strict, *everything_into(out))) == 0
    document, written = figures(out), exits_in(out)
    assert (document["certified"], document["bound"]) == (False, 0)
    assert document["calibration_cost"] == pytest.approx(3.3)
    assert set(written["exits"].tolist()) == {2}
    assert np.array_equal(written["answers"], written["last"])
    assert "nothing is certified for 1 %" in capsys.readouterr().out


def test_a_seed_makes_every_run_the_same(predictions: Path, out: Path) -> None:
    documents = []
    for _ in range(2):
        assert main(asked(predictions, *LOSS, "--seed", "3", *everything_into(out))) == 0
        documents.append(figures(out))
    assert documents[0] == documents[1]


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("eenet: ") and said.out == ""
    return line


@pytest.mark.parametrize("share", ["0", "1", "-0.01", "1.5", "nan", "inf", "1e400"])
@pytest.mark.parametrize("flag", ["--max-disagreement", "--max-accuracy-loss", "--confidence"])
def test_shares_outside_0_to_1_are_one_sentence_and_nothing_is_written(
    predictions: Path, out: Path, capsys: pytest.CaptureFixture[str], flag: str, share: str
) -> None:
    flags = [f"{flag}={share}"] + (DISAGREEMENT if flag == "--confidence" else [])
    assert main(asked(predictions, *everything_into(out), *flags)) == 2
    told = complaint(capsys)
    assert f"{flag[2:].replace('-', '_')} is " in told and "above 0 and below 1" in told
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "needed"),
    [
        (["--max-disagreement", "0.004"], "at least 748,"),
        (["--max-disagreement", "0.01", "--confidence", "0.9999"], "at least 917,"),
        (["--max-disagreement", "1e-9"], "at least 29957"),
        (["--max-accuracy-loss", "0.001"], "at least 3992"),
    ],
)
def test_too_few_rows_are_one_sentence_and_nothing_is_written(
    predictions: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    needed: str,
) -> None:
    assert main(asked(predictions, *everything_into(out), *flags)) == 2
    told = complaint(capsys)
    assert "there are 700 certification rows" in told and needed in told
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", ["certification_probs", "certification_labels", "test_labels"])
def test_a_missing_array_is_one_sentence(
    predictions: Path, out: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with np.load(predictions) as file:
        arrays = {each: file[each] for each in file.files if each != name}
    np.savez(predictions, **arrays)
    assert main(asked(predictions, *DISAGREEMENT, *everything_into(out))) == 2
    assert f"has no array {name}" in complaint(capsys)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"certification_probs": np.full((3, 9, 5), 0.2)}, "exits and classes must be the same"),
        ({"certification_labels": np.zeros(700, np.int64) - 1}, "outside the classes 0 to 3"),
        ({"certification_probs": np.full((3, 700, 4), np.nan)}, "holds NaN"),
        ({"certification_probs": np.full((3, 0, 4), 0.25)}, "has the shape (3, 0, 4)"),
    ],
)
def test_bad_certification_rows_are_one_sentence(
    predictions: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, NDArray[Any]],
    sentence: str,
) -> None:
    with np.load(predictions) as file:
        arrays = dict(file) | change
    arrays["certification_labels"] = arrays["certification_labels"][
        : arrays["certification_probs"].shape[1]
    ]
    np.savez(predictions, **arrays)
    assert main(asked(predictions, *DISAGREEMENT, *everything_into(out))) == 2
    assert sentence in complaint(capsys)
    assert list(out.iterdir()) == []


def test_other_flags_that_make_no_sense_are_one_sentence(
    predictions: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, sentence in (
        (["--costs", "1,2"], "there are 2 costs for 3 exits"),
        (["--precision", "int8"], "--precision chooses a network of a bundle"),
        (["--json", str(out / "nowhere" / "x")], "nowhere does not exist"),
        (["--exits", str(out)], "is a folder"),
    ):
        assert main(asked(predictions, *DISAGREEMENT, *everything_into(out), *flags)) == 2
        assert sentence in complaint(capsys)
    assert main(["certify", *DISAGREEMENT]) == 2
    assert "give either a bundle or --predictions" in complaint(capsys)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("flags", [[], [*DISAGREEMENT, *LOSS], ["--max-disagreement", "few"]])
def test_one_promise_is_given(
    predictions: Path, out: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(asked(predictions, *everything_into(out), *flags))
    assert ended.value.code == 2
    assert "--max-disagreement" in capsys.readouterr().err.splitlines()[-1]
    assert list(out.iterdir()) == []


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_bundle_is_certified_with_the_fit_that_the_promise_needs(
    bundle: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hint = "`eenet fit --labels none` fits a policy"
    refit(bundle, policy="stopping")
    assert main(["certify", str(bundle), *DISAGREEMENT, *everything_into(out)]) == 0
    assert figures(out)["policy"] == "stopping" and hint in capsys.readouterr().out
    refit(bundle, policy="stopping", label_free=True)
    before = contents(bundle)
    for flags, policy in ((LOSS, "stopping"), (DISAGREEMENT, "stopping-label-free")):
        assert main(["certify", str(bundle), *flags, *everything_into(out)]) == 0
        assert figures(out)["policy"] == policy and hint not in capsys.readouterr().out
    assert contents(bundle) == before
    certification = recorded_of(bundle).certification
    assert certification is not None
    fitted = load_scheduler(variant_of(bundle).scheduler("stopping-label-free"))
    rows = certification.combined(fitted.combiner)
    found = certify(fitted.policy, fitted.frontier, *rows, Promise("disagreement", 0.1))
    document = figures(out)
    assert (document["parameter"], document["bound"]) == (found.parameter, found.bound)
    assert document["expected_cost"] == found.expected_cost_ms
    test = recorded_of(bundle).test.combined(fitted.combiner)
    exits = exits_taken(fitted.policy, replay(fitted.policy, test.log_probs), found.parameter)
    assert np.array_equal(exits_in(out)["exits"], exits)


def test_a_bundle_keeps_its_routing_at_other_costs(bundle: Path, out: Path) -> None:
    refit(bundle, policy="stopping")
    refit(bundle, policy="stopping", label_free=True)
    found = []
    for costs in ([], ["--costs", "10,20,33"]):
        assert main(["certify", str(bundle), *DISAGREEMENT, *costs, *everything_into(out)]) == 0
        found.append(figures(out))
    assert found[0]["parameter"] == found[1]["parameter"]
    assert 10 * found[0]["calibration_cost"] == pytest.approx(found[1]["calibration_cost"])


def test_a_bundle_without_certification_rows_is_one_sentence(
    make_bundle: Callable[[Recorded], Path],
    make_probs: MakeProbs,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    probs, labels = make_probs(100)
    rows = Predictions(np.log(probs).astype(np.float16), labels)
    bundle = make_bundle(Recorded(rows, None, rows))
    refit(bundle, policy="stopping")
    for more in ([], ["--costs", "1,2,4"]):
        assert main(["certify", str(bundle), *DISAGREEMENT, *more, *everything_into(out)]) == 2
        assert "holds no certification rows; build it with" in complaint(capsys)
    assert list(out.iterdir()) == []


def test_a_policy_fitted_without_labels_says_what_its_accuracy_is(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refit(bundle, policy="stopping")
    assert main(["fit", str(bundle), "--labels", "none"]) == 0
    assert "is the agreement with them" in capsys.readouterr().out
    entry = variant_of(bundle).entry
    assert entry.policy == "stopping"
    assert {"stopping", "stopping-label-free"} < set(entry.schedulers)
    fitted_here = {name: entry.schedulers[name] for name in ("stopping", "stopping-label-free")}
    # As fits did before: the label-free one in command.
    rewrite_entry(variant_of(bundle), policy="stopping-label-free", schedulers=fitted_here)
    fitted = scheduler_of(bundle)
    assert (fitted.policy.kind, fitted.frontier.reference) == ("stopping", "last_exit")
    assert fitted.frontier.expected_accuracy[-1] == 1
    labelled = load_scheduler(variant_of(bundle).scheduler("stopping"))
    assert labelled.frontier.reference == "labels"
    assert main(["info", str(bundle), "--json"]) == 0
    told = capsys.readouterr()
    shown = json.loads(told.out)["precisions"]["float32"]["at_default_budget"]
    assert set(shown) == {"expected_agreement", "expected_cost_ms", "exit_rates"}
    assert re.search(r"\d % as the last exit", told.err)


def test_a_fit_without_labels_reads_none(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refit(bundle, policy="maxprob", label_free=True)
    before = load_scheduler(variant_of(bundle).scheduler("maxprob-label-free"))
    variant = variant_of(bundle)
    recorded = recorded_of(bundle)
    calibration = recorded.calibration
    shuffled = calibration._replace(labels=calibration.labels[::-1])
    save_recorded(recorded._replace(calibration=shuffled), variant.predictions)
    rewrite_manifest(variant.bundle)
    refit(bundle, policy="maxprob", label_free=True)
    after = load_scheduler(variant_of(bundle).scheduler("maxprob-label-free"))
    assert np.array_equal(after.frontier.expected_accuracy, before.frontier.expected_accuracy)
    assert np.array_equal(after.frontier.exit_rates, before.frontier.exit_rates)
