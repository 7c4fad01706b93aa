import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from profiling.calibration import Predictions, Recorded
from profiling.evaluation.evaluate import Comparison, compare
from profiling.evaluation.figures import EXAMPLES, chosen_rows, curve_of, exits_at
from profiling.evaluation.report import write_report

pytestmark = pytest.mark.usefixtures("quick_fits")

COSTS = np.array([1.0, 2.0, 3.3])
BUDGETS = [1.5, 2.5]
CLASSES = ("ape", "bee", "<b>cat</b>", "dog & owner")


@pytest.fixture(scope="module")
def recorded(make_probs: Callable[..., tuple[NDArray[np.float64], NDArray[np.int64]]]) -> Recorded:
    (seen, seen_labels), (unseen, unseen_labels) = make_probs(200), make_probs(120, seed=1)
    return Recorded(
        Predictions(np.log(seen), seen_labels),
        None,
        Predictions(np.log(unseen), unseen_labels),
    )


def compared(recorded: Recorded, policies: Sequence[str]) -> Comparison:
    return compare(recorded, COSTS, budgets=BUDGETS, policies=policies)


def report(folder: Path, recorded: Recorded, comparison: Comparison, **images: object) -> str:
    return write_report(
        folder,
        "pets <i>",
        recorded,
        comparison,
        CLASSES,
        **images,  # type: ignore[arg-type]
    ).read_text()


def images_of(page: str) -> list[str]:
    return re.findall(r'<img src="([^"]+)"', page)


@pytest.fixture(scope="module")
def comparison(recorded: Recorded) -> Comparison:
    return compared(recorded, ["maxprob", "stopping", "oracle"])


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, recorded: Recorded, comparison: Comparison
) -> Path:
    """A report without images, in a folder that did not exist."""
    folder = tmp_path_factory.mktemp("report") / "of" / "pets"
    assert report(folder, recorded, comparison) == (folder / "index.html").read_text()
    return folder


def test_every_figure_of_the_page_is_in_the_folder_and_no_other(folder: Path) -> None:
    images = images_of((folder / "index.html").read_text())
    assert set(images) == {
        "accuracy.svg",
        "exit_rates.svg",
        "scores-stopping.svg",
        "scores-maxprob.svg",
        "reliability.svg",
    }
    assert sorted([*images, "index.html"]) == sorted(path.name for path in folder.iterdir())
    for name in images:
        assert "<svg" in (folder / name).read_text()


def test_names_are_escaped(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert "<i>" not in page and "<b>" not in page and "dog & owner" not in page
    assert page.count("pets &lt;i&gt;") >= 3  # title, heading and summary
    assert "&lt;b&gt;cat&lt;/b&gt;" in page and "dog &amp; owner" in page


def test_the_table_has_every_figure(folder: Path, comparison: Comparison) -> None:
    page = (folder / "index.html").read_text()
    for policy in ("maxprob", "stopping", "oracle"):
        (line,) = re.findall(rf"<tr[^>]*><td>{policy}</td>.*?</tr>", page)
        shown = [j.evaluation for j in comparison.scored if j.evaluation.policy == policy]
        cells = [f"{100 * row.test_accuracy:.2f} ({row.test_cost:.3f})" for row in shown]
        assert re.findall(r"<td>([\d.]+ \([\d.]+\))</td>", line) == cells


def test_the_example_rows_leave_where_the_table_says(
    folder: Path, recorded: Recorded, comparison: Comparison
) -> None:
    page = (folder / "index.html").read_text()
    budget = float(re.findall(r"leave at each exit \(stopping, ([\d.]+)\)", page)[0])
    exits = exits_at(comparison.schedulers["stopping"], recorded.test, budget)
    shown = re.findall(r"<tr><td>exit (\d)</td><td>(\d+)</td><td>(.*?)</td>(.*?)</tr>", page)
    assert {int(exit) for exit, *_ in shown} == set(exits.tolist())
    for exit, row, label, answers in shown:
        assert exits[int(row)] == int(exit)
        assert label == html.escape(CLASSES[recorded.test.labels[int(row)]])
        assert len(re.findall(r"<td>[^<]+ [01]\.\d\d</td>", answers)) == int(exit) + 1


@pytest.mark.slow
def test_with_images_the_examples_are_a_figure(
    tmp_path: Path, recorded: Recorded, comparison: Comparison
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (120, 4, 4, 3), dtype=np.uint8)
    only_maxprob = comparison._replace(schedulers={"maxprob": comparison.schedulers["maxprob"]})
    page = report(tmp_path, recorded, only_maxprob, images=images)
    assert "examples.svg" in images_of(page) and (tmp_path / "examples.svg").is_file()
    assert (tmp_path / "examples.svg").read_text().count("<image ") > EXAMPLES
    assert "<td>exit 0</td>" not in page


@pytest.mark.slow
def test_masks_are_reported_by_the_share_of_their_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (60, 9))
    logits = rng.normal(size=(3, 60, 9, 4)) + np.array([2, 4, 8])[:, None, None, None] * (
        np.eye(4)[labels] * rng.uniform(0, 1, (60, 1, 1))
    )
    masks = Predictions(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), labels)
    recorded = Recorded(masks, None, masks)
    comparison = compared(recorded, ["maxprob", "stopping"])
    page = report(tmp_path / "table", recorded, comparison)
    assert "% of the pixels of the test set" in page
    exits = exits_at(comparison.schedulers["stopping"], masks, 2.15)
    shown = re.findall(r"<tr><td>exit (\d)</td><td>(\d+)</td><td>(.*?)</td>(.*?)</tr>", page)
    assert {int(exit) for exit, *_ in shown} == set(exits.tolist())
    for exit, row, label, answers in shown:
        assert label == html.escape(", ".join(CLASSES[c] for c in np.unique(labels[int(row)])))
        told = [float(share) for share in re.findall(r"<td>right ([\d.]+)</td>", answers)]
        expected = masks.correct[int(row), : int(exit) + 1].tolist()
        assert told == pytest.approx(expected, abs=0.0051)
    images = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    page = report(tmp_path / "images", recorded, comparison, images=images)
    assert "examples.svg" in images_of(page)


@pytest.mark.slow
@pytest.mark.parametrize(
    "policies",
    [["oracle"], ["eenet-per-budget"], ["entropy"], ["patience", "oracle"]],
    ids=lambda policies: "+".join(policies),
)
def test_any_choice_of_policies_makes_a_report(
    tmp_path: Path, recorded: Recorded, policies: list[str]
) -> None:
    page = report(tmp_path, recorded, compared(recorded, policies))
    assert "accuracy.svg" in images_of(page)
    assert all((tmp_path / name).is_file() for name in images_of(page))
    fitted = [name for name in policies if name in ("entropy", "patience")]
    assert [name for name in images_of(page) if name.startswith("scores-")] == [
        f"scores-{name}.svg" for name in fitted
    ]


@pytest.mark.slow
def test_the_same_figures_make_the_same_files(
    tmp_path: Path, folder: Path, recorded: Recorded, comparison: Comparison
) -> None:
    report(tmp_path, recorded, comparison)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_curve_is_what_replaying_at_each_budget_gives(
    recorded: Recorded, comparison: Comparison
) -> None:
    for name, scheduler in comparison.schedulers.items():
        curve = curve_of(scheduler, recorded.test, BUDGETS)
        judged = [j for j in comparison.scored if j.evaluation.policy == name]
        for place, (result, exits, _) in enumerate(judged):
            assert np.array_equal(curve.exits[place], exits)
            assert np.array_equal(exits_at(scheduler, recorded.test, result.budget), exits)
            assert curve.costs[place] == pytest.approx(result.test_cost)
            assert curve.accuracy[place] == pytest.approx(result.test_accuracy)


@pytest.mark.parametrize("rows", [0, 1, 3, EXAMPLES, 100])
def test_examples_are_spread_over_the_rows_that_leave_there(rows: int) -> None:
    exits = np.array([1, 0, 2] * rows)
    chosen = chosen_rows(exits, 0)
    assert len(chosen) == len(set(chosen)) == min(rows, EXAMPLES)
    assert all(exits[row] == 0 for row in chosen)
    assert chosen == sorted(chosen)
    if rows > 1:
        assert (chosen[0], chosen[-1]) == (1, 3 * rows - 2)
