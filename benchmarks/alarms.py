"""How soon a broken promise is found, and how often one that is kept is suspected.

    .venv/bin/python -m benchmarks.alarms

Streams of audited rows, each of which disagrees with the same probability: exactly as often as
promised, and more often by two points. `RiskAlarm` is beside the test that it replaces, the 99 %
interval (Wilson) of the latest thousand rows, looked at with every row. Also the rows that renew a
certificate. JSON on the last line.
"""

from typing import NamedTuple

import numpy as np

from benchmarks.harness import Figures, make_parser, print_report
from scheduler.anytime import RiskAlarm, anytime_upper_bounds
from scheduler.monitoring.agreement import wilson

LIMITS, MISS, CONFIDENCE = (0.005, 0.01, 0.02, 0.05), 0.02, 0.95
WILSON_99, WINDOW, MIN_ROWS = 2.326348, 1000, 30
RENEWAL_STEP, MOST_TO_RENEW = 20, 50_000


class Sizes(NamedTuple):
    """How much is simulated: streams of rows that are kept, and of rows that are broken."""

    streams: int = 200
    kept_rows: int = 20_000
    broken_rows: int = 5000


def main() -> None:
    """Simulate all limits."""
    args = make_parser(__doc__).parse_args()
    sizes = Sizes(4, 300, 300) if args.smoke else Sizes()
    rows = [judge(limit, sizes) for limit in LIMITS]
    print_report({"sizes": sizes._asdict(), "limits": rows}, smoke=args.smoke)


def judge(limit: float, sizes: Sizes) -> Figures:
    """Simulate one promise."""
    rng = np.random.default_rng(0)
    kept = (rng.random((sizes.streams, sizes.kept_rows)) < limit).astype(float)
    broken = (rng.random((sizes.streams, sizes.broken_rows)) < limit + MISS).astype(float)
    figures: Figures = {"limit": limit}
    for name, find in (("alarm", alarmed_at), ("wilson", wilson_at)):
        suspected = [find(losses, limit) is not None for losses in kept.tolist()]
        found = [find(losses, limit) or np.inf for losses in broken.tolist()]
        figures[f"{name}_suspected"] = float(np.mean(suspected))
        figures[f"{name}_found_after"] = float(np.median(found))
    figures["renewed_without_a_loss"] = renewed_after(0.0, limit)
    figures["renewed_at_half_the_limit"] = renewed_after(limit / 2, limit)
    print(
        f"{limit:.1%} promised: suspected in {figures['alarm_suspected']:.1%} of the streams that "
        f"keep it (before: {figures['wilson_suspected']:.1%}); two points more found after "
        f"{figures['alarm_found_after']:.0f} rows (before: {figures['wilson_found_after']:.0f}); "
        f"renewed after {figures['renewed_without_a_loss']} rows without a loss, "
        f"{figures['renewed_at_half_the_limit']} with half as many as promised"
    )
    return figures


def alarmed_at(losses: list[float], limit: float) -> int | None:
    """Return the row at which the alarm fires; None if it does not."""
    alarm = RiskAlarm(limit, CONFIDENCE)
    return next((row + 1 for row, loss in enumerate(losses) if alarm.add(loss)), None)


def wilson_at(losses: list[float], limit: float) -> int | None:
    """Return the row at which the interval of the latest rows lies beyond the limit."""
    lost = np.cumsum([0.0, *losses]).tolist()
    for row in range(MIN_ROWS, len(losses) + 1):
        rows = min(row, WINDOW)
        alike = rows - int(lost[row] - lost[row - rows])
        if wilson(alike, rows, WILSON_99).high < 1 - limit:
            return row
    return None


def renewed_after(risk: float, limit: float) -> int | None:
    """Return the rows, in steps of 20, that certify a limit at this measured risk."""
    for rows in range(RENEWAL_STEP, MOST_TO_RENEW, RENEWAL_STEP):
        if anytime_upper_bounds(np.array([risk * rows]), rows, CONFIDENCE)[0] <= limit:
            return rows
    return None


if __name__ == "__main__":
    main()
