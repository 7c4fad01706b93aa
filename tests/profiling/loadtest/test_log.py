from pathlib import Path

import numpy as np
import pytest

from profiling.loadtest.log import LoadLog, PollLog, PutLog, SampleLog, load_log, phases, save_log


def log_of(
    due_s: list[float],
    puts: tuple[tuple[float, str, float], ...] = (),
    forms: list[str] | None = None,
    measure: str = "compute",
) -> LoadLog:
    """Samples of 1, 2, 3 ... ms of compute and twice that in all; the last has no answer."""
    count = len(due_s)
    answered = np.arange(count) < count - 1
    compute_ms = np.where(answered, np.arange(count) + 1.0, np.nan)
    samples = SampleLog(
        due_s=np.array(due_s),
        sent_s=np.array(due_s) + 0.001,
        latency_ms=compute_ms,
        outcome=np.where(answered, "200", "429"),
        input=np.arange(count, dtype=np.int32),
        form=np.array(forms or ["clean"] * count),
        exit=np.where(answered, np.arange(count) % 2, -1).astype(np.int8),
        class_id=np.zeros(count, np.int32),
        correct=np.where(answered, np.arange(count) % 2, -1).astype(np.int8),
        late=np.zeros(count, np.int8),
        total_ms=2 * compute_ms,
        queue_ms=0 * compute_ms,
        decode_ms=0 * compute_ms,
        compute_ms=compute_ms,
        budget_ms=np.full(count, np.nan),
    )
    set_s, outcomes, budgets_ms = zip(*puts, strict=True) if puts else ((), (), ())
    times = np.array(set_s, float)
    put_log = PutLog(times, times, times, np.array(outcomes, str), np.array(budgets_ms, float))
    return LoadLog(measure, 3, 2.0, samples, put_log, PollLog(*[np.array([0.5])] * 10))


def test_a_phase_ends_where_budget_or_form_changes() -> None:
    log = log_of(
        [0.1, 0.6, 1.2, 1.7, 2.2, 2.7],
        puts=((1.0, "200", 4.0), (1.5, "422", 9.0), (2.5, "200", np.nan)),
        forms=["clean"] * 3 + ["noise-3"] * 3,
    )
    first, second, third, last = phases(log)
    assert (first.begin_s, first.end_s, first.form, first.budget_ms) == (0.0, 1.0, "clean", 2.0)
    assert (first.samples, first.mean_ms, first.budget_error) == (2, 1.5, -0.25)
    assert first.accuracy == 0.5 and first.exit_rates == [0.5, 0.5, 0]
    assert (second.begin_s, second.form, second.budget_ms, second.mean_ms) == (1, "clean", 4.0, 3.0)
    assert (third.begin_s, third.form, third.budget_ms, third.mean_ms) == (1.7, "noise-3", 4, 4.5)
    assert last.begin_s == 2.5 and last.budget_ms is None and last.samples == 0
    assert last.mean_ms is last.budget_error is last.accuracy is last.exit_rates is None


def test_what_counts_is_the_latency_that_the_budget_is_about() -> None:
    (phase,) = phases(log_of([0.1, 0.2, 0.3], measure="end_to_end"))
    assert phase.mean_ms == 3.0 and phase.budget_error == 0.5
    assert phases(log_of([])) == []


def test_without_samples_in_between_a_change_makes_no_phase() -> None:
    log = log_of([0.1, 3.0, 3.1], puts=((1.0, "200", 4.0), (2.0, "200", 5.0), (9.0, "200", 6.0)))
    assert [(phase.begin_s, phase.budget_ms) for phase in phases(log)] == [(0.0, 2.0), (2.0, 5.0)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    log = log_of([0.1, 0.2], puts=((0.1, "200", 1.0),))
    save_log(log, tmp_path / "log.npz")
    read = load_log(tmp_path / "log.npz")
    assert (read.measure, read.num_exits, read.first_budget_ms) == ("compute", 3, 2.0)
    for part in ("samples", "puts", "polls"):
        for one, other in zip(getattr(log, part), getattr(read, part), strict=True):
            np.testing.assert_array_equal(one, other)
    np.savez(tmp_path / "other.npz", measure="compute")
    with pytest.raises(ValueError, match=r"lacks 'num_exits'; make it with eenet loadtest --log"):
        load_log(tmp_path / "other.npz")
