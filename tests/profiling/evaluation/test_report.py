import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from numpy.typing import NDArray

from profiling.calibration import Predictions, Recorded
from profiling.evaluation.evaluate import Comparison, compare
from profiling.evaluation.figures import (
    COLOURS,
    DASHES,
    EXAMPLES,
    accuracy_figure,
    chosen_rows,
    curve_of,
    exits_at,
)
from profiling.evaluation.report import write_report
from scheduler.policies import POLICIES

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
        assert re.findall(r"<td[^>]*>([\d.]+ \([\d.]+\))</td>", line) == cells


def test_the_best_of_each_budget_is_bold_and_the_oracle_does_not_count(
    folder: Path, comparison: Comparison
) -> None:
    page = (folder / "index.html").read_text()
    served = {name: rows for name, rows in comparison.by_policy.items() if name != "oracle"}
    for place in range(len(BUDGETS)):
        shown = {name: f"{100 * rows[place].test_accuracy:.2f}" for name, rows in served.items()}
        best = max(shown.values(), key=float)
        for policy in ("maxprob", "stopping", "oracle"):
            (line,) = re.findall(rf"<tr[^>]*><td>{policy}</td>(.*?)</tr>", page)
            marked = re.findall(r'<td( class="best")?>', line)[place] != ""
            assert marked == (shown.get(policy) == best), (policy, place)


def texts_of(axes: Axes) -> str:
    return " ".join(text.get_text() for text in axes.texts + axes.legend_.get_texts())


@pytest.mark.parametrize("intervals", [False, True])
def test_the_oracle_flattens_nothing_and_intervals_are_drawn_if_asked_for(
    recorded: Recorded, comparison: Comparison, intervals: bool
) -> None:
    budgets = [1.0, 1.5, 2.0, 2.5, 3.3]
    curves = {
        name: curve_of(scheduler, recorded.test, budgets)
        for name, scheduler in comparison.schedulers.items()
    }
    figure = accuracy_figure(comparison, curves, recorded.test, budgets, intervals=intervals)
    left, right = figure.axes
    top = left.get_ylim()[1]
    highest = max(comparison.exit_accuracy + [c.accuracy.max() for c in curves.values()])
    lowest = min(comparison.exit_accuracy)
    assert 100 * highest < top <= min(100 * (highest + 0.16 * (highest - lowest)), 100)
    oracle = max(row.test_accuracy for row in comparison.by_policy["oracle"])
    assert ("cut off" in texts_of(left)) == (100 * oracle > top)
    assert "%" in left.get_ylabel() and "ms" in left.get_xlabel()
    assert bool(left.containers) == intervals and bool(right.collections) == intervals


def test_no_two_policies_look_alike() -> None:
    looks = {(COLOURS[name], str(DASHES[name])) for name in POLICIES}
    colours = {COLOURS[name] for name in POLICIES}
    assert len(looks) == len(colours) == len(POLICIES)


def test_the_example_rows_leave_where_the_table_says(
    folder: Path, recorded: Recorded, comparison: Comparison
) -> None:
    page = (folder / "index.html").read_text()
    budget = float(re.findall(r"leave at each exit \(stopping, ([\d.]+) ms\)", page)[0])
    exits = exits_at(comparison.schedulers["stopping"], recorded.test, budget)
    shown = re.findall(r"<tr><td>exit (\d)</td><td>(\d+)</td><td>(.*?)</td>(.*?)</tr>", page)
    assert {int(exit) for exit, *_ in shown} == set(exits.tolist())
    for exit, row, label, answers in shown:
        assert exits[int(row)] == int(exit)
        assert label == html.escape(CLASSES[recorded.test.labels[int(row)]])
        shown_right = [
            kind == "right" for kind in re.findall(r'<td class="(right|wrong)">', answers)
        ]
        right = recorded.test.correct[int(row), : int(exit) + 1] == 1
        assert shown_right == right.tolist()
        marks = re.findall(r">([✓✗]) [^<]+ \d+ %</td>", answers)
        assert [mark == "✓" for mark in marks] == right.tolist()


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
        told = [int(share) for share in re.findall(r"<td>(\d+) % of pixels right</td>", answers)]
        expected = 100 * masks.correct[int(row), : int(exit) + 1]
        assert told == pytest.approx(expected.tolist(), abs=0.51)
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
