"""A page of figures about policies on recorded predictions."""

import html
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from profiling.calibration import Predictions, Recorded
from profiling.evaluation.evaluate import Comparison, spread_budgets
from profiling.evaluation.figures import (
    EXAMPLES,
    STYLE,
    accuracy_figure,
    answer_text,
    chosen_rows,
    curve_of,
    examples_figure,
    exits_at,
    rates_figure,
    reliability_figure,
    scores_figure,
)
from scheduler.fitted import DEFAULT_POLICY

CURVE_BUDGETS = 40
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
 body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
        color: #111827 }}
 img {{ max-width: 100% }} table {{ border-collapse: collapse; font-size: 14px }}
 th, td {{ padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e5e7eb }}
 th:first-child, td:first-child {{ text-align: left }} tr.best td {{ font-weight: 600 }}
 .scroll {{ overflow-x: auto }} figcaption, .note {{ color: #4b5563; font-size: 14px }}
 figure {{ margin: 1.5rem 0 }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def write_report(
    folder: Path,
    name: str,
    recorded: Recorded,
    comparison: Comparison,
    classes: Sequence[str],
    images: NDArray[np.uint8] | None = None,
) -> Path:
    """Write `index.html` and its figures.

    Args:
        folder: Made where it does not exist.
        name: Of the network, for the title.
        recorded: The predictions that were compared on.
        comparison: From `compare`.
        classes: Names of the C classes.
        images: The test images, (M, H, W, 3), to show examples of; None: examples are a table.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    budgets = spread_budgets(comparison.costs_ms, CURVE_BUDGETS)
    curves = {
        policy: curve_of(scheduler, recorded.test, budgets)
        for policy, scheduler in comparison.schedulers.items()
    }
    body = [_summary(name, recorded, comparison), _table(comparison)]
    with mpl.rc_context(STYLE):
        figure = accuracy_figure(comparison, curves, recorded.test, budgets)
        body.append(
            _saved(
                figure,
                folder / "accuracy.svg",
                "Accuracy against realised mean cost on the test set. Bars: 95 % bootstrap "
                "intervals at the table's budgets. Right: the same less the first unlearned "
                "policy's at the same budget, bands from resampling the same rows for both.",
            )
        )
        if curves:
            body.append(
                _saved(
                    rates_figure(curves, budgets),
                    folder / "exit_rates.svg",
                    "Share of test samples that leave at each exit, by budget.",
                )
            )
            main = DEFAULT_POLICY if DEFAULT_POLICY in curves else next(iter(curves))
            middle = spread_budgets(comparison.costs_ms, 3)[1]
            others: list[str] = []
            for policy, scheduler in comparison.schedulers.items():
                own = scheduler.policy.thresholds(0.0) is None
                shown = _saved(
                    scores_figure(scheduler, recorded.test, middle),
                    folder / f"scores-{policy}.svg",
                    f"{policy}: exit scores of right and wrong answers, and the threshold at "
                    f"budget {middle:.4g} ms"
                    + (" (median and middle nine tenths: rows have their own)." if own else "."),
                )
                (body if policy == main else others).append(shown)
            if others:
                more = "".join(others)
                body.append(f"<details><summary>Other policies</summary>{more}</details>")
            body.append(
                _saved(
                    reliability_figure(comparison.schedulers, recorded.test),
                    folder / "reliability.svg",
                    "How often answers are right against how sure they look: bins of equal "
                    "count; on the diagonal a score is a probability.",
                )
            )
            scheduler = comparison.schedulers[main]
            exits = exits_at(scheduler, recorded.test, middle)
            body.append(f"<h2>Examples that leave at each exit ({main}, {middle:.4g})</h2>")
            body.append(
                _examples_table(recorded.test, exits, classes)
                if images is None
                else _saved(
                    examples_figure(recorded.test, exits, classes, images),
                    folder / "examples.svg",
                    "Test images by the exit they leave at: the answer, red where wrong.",
                )
            )
    page = folder / "index.html"
    title = html.escape(f"{name}: exit policies compared")
    page.write_text(PAGE.format(title=title, body="\n".join(body)))
    return page


def _examples_table(test: Predictions, exits: NDArray[np.intp], classes: Sequence[str]) -> str:
    num_exits = len(test.log_probs)
    head = "".join(f"<th>at exit {k}</th>" for k in range(num_exits))
    lines = [f"<tr><th>leaves at</th><th>test row</th><th>label</th>{head}</tr>"]
    for exit in range(num_exits):
        for row in chosen_rows(exits, exit)[: EXAMPLES // 2]:
            shown = [
                f"<td>{html.escape(answer_text(test, k, row, classes)[0])}</td>"
                for k in range(exit + 1)
            ]
            shown += ["<td></td>"] * (num_exits - exit - 1)
            label = html.escape(", ".join(classes[c] for c in np.unique(test.labels[row])))
            lines.append(
                f"<tr><td>exit {exit}</td><td>{row}</td><td>{label}</td>{''.join(shown)}</tr>"
            )
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _summary(name: str, recorded: Recorded, comparison: Comparison) -> str:
    num_exits, rows, *pixels, num_classes = recorded.test.log_probs.shape
    costs = ", ".join(f"{cost:.4g}" for cost in comparison.costs_ms)
    accuracy = ", ".join(f"{100 * share:.2f}" for share in comparison.exit_accuracy)
    return (
        f"<p>{html.escape(name)}: {num_exits} exits, {num_classes} classes. Policies are fitted to "
        f"{len(recorded.calibration.labels)} calibration samples and judged on {rows} test "
        f"samples. Until its exits the network takes {costs} ms; there it is right in {accuracy} "
        f"% of the {'pixels of the ' if pixels else ''}test set.</p>"
    )


def _table(comparison: Comparison) -> str:
    head = "".join(f"<th>{budget:.4g} ms</th>" for budget in comparison.budgets)
    lines = [f"<tr><th>test accuracy % (mean cost ms)</th>{head}</tr>"]
    for policy, rows in comparison.by_policy.items():
        cells = "".join(
            f"<td>{100 * row.test_accuracy:.2f} ({row.test_cost:.3f})</td>" for row in rows
        )
        best = ' class="best"' if policy == DEFAULT_POLICY else ""
        lines.append(f"<tr{best}><td>{policy}</td>{cells}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _saved(figure: Figure, path: Path, caption: str) -> str:
    figure.savefig(path, metadata={"Date": None})
    text = html.escape(caption)
    return f'<figure><img src="{path.name}" alt="{text}"><figcaption>{text}</figcaption></figure>'
