"""An HTML page with plots of policies on recorded predictions."""

import html
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from profiling.calibration import Predictions, Recorded
from profiling.evaluation.evaluate import ORACLE, Comparison, Evaluation, spread_budgets
from profiling.evaluation.figures import (
    EXAMPLES,
    STYLE,
    AnswerText,
    Curve,
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
from scheduler.policies import DEFAULT_POLICY

CURVE_BUDGETS = 40
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
 body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
        color: #111827 }}
 img {{ max-width: 100% }} table {{ border-collapse: collapse; font-size: 14px }}
 th, td {{ padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e5e7eb }}
 th:first-child, td:first-child {{ text-align: left }}
 td.best {{ font-weight: 700 }} .right {{ color: #0072b2 }} .wrong {{ color: #d55e00 }}
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
    *,
    intervals: bool = False,
) -> Path:
    """Write `index.html` and its figures.

    Args:
        folder: Created if it does not exist.
        name: The network's name, for the title.
        recorded: The predictions of the comparison.
        comparison: From `compare`.
        classes: Names of the C classes.
        images: The test images, (M, H, W, 3), to show as examples; None: show a table.
        intervals: Draw 95 % intervals.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first_ms, last_ms = comparison.costs_ms[[0, -1]].tolist()
    budgets = [first_ms, *spread_budgets(comparison.costs_ms, CURVE_BUDGETS), last_ms]
    curves = {
        policy: curve_of(scheduler, recorded.test, budgets)
        for policy, scheduler in comparison.schedulers.items()
    }
    drawn = (
        " Bars: 95 % bootstrap intervals at the table's budgets; bands resample the same rows for "
        "both policies."
        if intervals
        else ""
    )
    body = [_summary(name, recorded, comparison), _table(comparison)]
    with mpl.rc_context(STYLE):
        body.append(
            _saved(
                accuracy_figure(comparison, curves, recorded.test, budgets, intervals=intervals),
                folder / "accuracy.svg",
                "Left: accuracy against realised mean cost on the test set. Crosses: every sample "
                "leaves at the same exit. The oracle knows which exits are right; it is cut off "
                "where it would flatten the others. Right: the difference to the first unlearned "
                f"policy at the same budget.{drawn}",
            )
        )
        if curves:
            body += _policy_sections(folder, recorded.test, comparison, curves, budgets)
            body += _examples_section(folder, recorded.test, comparison, classes, images)
    page = folder / "index.html"
    title = html.escape(f"{name}: exit policies compared")
    page.write_text(PAGE.format(title=title, body="\n".join(body)))
    return page


def _policy_sections(
    folder: Path,
    test: Predictions,
    comparison: Comparison,
    curves: dict[str, Curve],
    budgets: Sequence[float],
) -> list[str]:
    """Plot exit rates, the scores of each policy and their reliability."""
    rates = _saved(
        rates_figure(curves, budgets),
        folder / "exit_rates.svg",
        "Share of test samples that leave at each exit, by budget.",
    )
    main, middle = _main_policy(comparison), _middle_budget(comparison)
    sections: list[str] = [rates]
    others: list[str] = []
    for policy, scheduler in comparison.schedulers.items():
        per_row = scheduler.policy.thresholds(0.0) is None
        scores = _saved(
            scores_figure(scheduler, test, middle),
            folder / f"scores-{policy}.svg",
            f"{policy}: exit scores of right and wrong predictions, and the threshold at "
            f"budget {middle:.4g} ms"
            + (" (median and middle nine tenths; each row has its own)." if per_row else "."),
        )
        (sections if policy == main else others).append(scores)
    if others:
        more = "".join(others)
        sections.append(f"<details><summary>Other policies</summary>{more}</details>")
    reliability = _saved(
        reliability_figure(comparison.schedulers, test),
        folder / "reliability.svg",
        "Share of right answers against the score, in bins of equal count; on the grey diagonal "
        "the score is the probability to be right.",
    )
    return [*sections, reliability]


def _examples_section(
    folder: Path,
    test: Predictions,
    comparison: Comparison,
    classes: Sequence[str],
    images: NDArray[np.uint8] | None,
) -> list[str]:
    """Show samples that leave at each exit, as images or as a table."""
    main, middle = _main_policy(comparison), _middle_budget(comparison)
    exits = exits_at(comparison.schedulers[main], test, middle)
    heading = f"<h2>Examples that leave at each exit ({main}, {middle:.4g} ms)</h2>"
    test = test.combined(comparison.schedulers[main].combiner)
    if images is None:
        return [heading, _examples_table(test, exits, classes)]
    figure = _saved(
        examples_figure(test, exits, classes, images),
        folder / "examples.svg",
        "Test images by the exit they leave at, with the answer and its probability; wrong "
        "answers have a cross and a dashed frame.",
    )
    return [heading, figure]


def _main_policy(comparison: Comparison) -> str:
    """Choose the policy to show first: the default, if it was compared."""
    fitted = comparison.schedulers
    return DEFAULT_POLICY if DEFAULT_POLICY in fitted else next(iter(fitted))


def _middle_budget(comparison: Comparison) -> float:
    return spread_budgets(comparison.costs_ms, 3)[1]


def _examples_table(test: Predictions, exits: NDArray[np.intp], classes: Sequence[str]) -> str:
    num_exits = len(test.log_probs)
    head = "".join(f"<th>at exit {k}</th>" for k in range(num_exits))
    lines = [f"<tr><th>leaves at</th><th>test row</th><th>label</th>{head}</tr>"]
    for exit in range(num_exits):
        for row in chosen_rows(exits, exit)[: EXAMPLES // 2]:
            shown = [_answer_cell(answer_text(test, k, row, classes)) for k in range(exit + 1)]
            shown += ["<td></td>"] * (num_exits - exit - 1)
            label = html.escape(", ".join(classes[c] for c in np.unique(test.labels[row])))
            lines.append(
                f"<tr><td>exit {exit}</td><td>{row}</td><td>{label}</td>{''.join(shown)}</tr>"
            )
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _answer_cell(answer: AnswerText) -> str:
    if answer.right is None:
        return f"<td>{html.escape(answer.text)}</td>"
    kind = "right" if answer.right else "wrong"
    return f'<td class="{kind}">{html.escape(answer.text)}</td>'


def _summary(name: str, recorded: Recorded, comparison: Comparison) -> str:
    num_exits, rows, *pixels, num_classes = recorded.test.log_probs.shape
    costs = ", ".join(f"{cost:.4g}" for cost in comparison.costs_ms)
    accuracy = ", ".join(f"{100 * share:.2f}" for share in comparison.exit_accuracy)
    return (
        f"<p>{html.escape(name)}: {num_exits} exits, {num_classes} classes. Policies are fitted to "
        f"{len(recorded.calibration.labels)} calibration samples and evaluated on {rows} test "
        f"samples. The exits are reached after {costs} ms; their heads alone are right for "
        f"{accuracy} % of the {'pixels of the ' if pixels else ''}test set.</p>"
    )


def _table(comparison: Comparison) -> str:
    head = "".join(f"<th>{budget:.4g} ms</th>" for budget in comparison.budgets)
    lines = [f"<tr><th>test accuracy % (mean cost ms)</th>{head}</tr>"]
    served = [rows for policy, rows in comparison.by_policy.items() if policy != ORACLE]
    best = [max(_shown(row) for row in column) for column in zip(*served, strict=True)]
    for policy, rows in comparison.by_policy.items():
        bold = best if policy != ORACLE else []
        cells = [
            f'<td class="best">{_cell(row)}</td>'
            if place < len(bold) and _shown(row) == bold[place]
            else f"<td>{_cell(row)}</td>"
            for place, row in enumerate(rows)
        ]
        lines.append(f"<tr><td>{policy}</td>{''.join(cells)}</tr>")
    table = f'<div class="scroll"><table>{"".join(lines)}</table></div>'
    note = "Bold: the best policy at a budget; the oracle, which knows the labels, does not count."
    return f'{table}<p class="note">{note}</p>'


def _cell(row: Evaluation) -> str:
    return f"{_shown(row):.2f} ({row.test_cost:.3f})"


def _shown(row: Evaluation) -> float:
    """The test accuracy in % as the table shows it: what looks equal is equally good."""
    return round(100 * row.test_accuracy, 2)


def _saved(figure: Figure, path: Path, caption: str) -> str:
    figure.savefig(path, metadata={"Date": None})
    text = html.escape(caption)
    return f'<figure><img src="{path.name}" alt="{text}"><figcaption>{text}</figcaption></figure>'
