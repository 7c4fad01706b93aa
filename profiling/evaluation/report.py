"""An HTML page with plots of policies on recorded predictions."""

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
        folder: Created if it does not exist.
        name: The network's name, for the title.
        recorded: The predictions of the comparison.
        comparison: From `compare`.
        classes: Names of the C classes.
        images: The test images, (M, H, W, 3), to show as examples; None: show a table.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    budgets = spread_budgets(comparison.costs_ms, CURVE_BUDGETS)
    curves = {
        policy: curve_of(scheduler, recorded.test, budgets)
        for policy, scheduler in comparison.schedulers.items()
    }
    body = [_summary(name, recorded, comparison), _table(comparison)]
    with mpl.rc_context(STYLE):
        body.append(
            _saved(
                accuracy_figure(comparison, curves, recorded.test, budgets),
                folder / "accuracy.svg",
                "Accuracy against realised mean cost on the test set. Bars: 95 % bootstrap "
                "intervals at the table's budgets. Right: the difference to the first unlearned "
                "policy at the same budget; bands resample the same rows for both.",
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
        "Share of right predictions against the score, in bins of equal count; on the diagonal "
        "the score is a probability.",
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
    test = test.combined(comparison.schedulers[main].combiner)
    heading = f"<h2>Examples that leave at each exit ({main}, {middle:.4g})</h2>"
    if images is None:
        return [heading, _examples_table(test, exits, classes)]
    figure = _saved(
        examples_figure(test, exits, classes, images),
        folder / "examples.svg",
        "Test images by the exit they leave at, with the predicted class, red if wrong.",
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
        f"{len(recorded.calibration.labels)} calibration samples and evaluated on {rows} test "
        f"samples. The exits are reached after {costs} ms; their heads alone are right for "
        f"{accuracy} % of the {'pixels of the ' if pixels else ''}test set.</p>"
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
