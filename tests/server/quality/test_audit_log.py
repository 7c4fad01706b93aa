import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.quality.audit_log import AuditLog

CLASSES = 3


def log_probs_of(answers: tuple[int, ...]) -> np.ndarray:
    """What exits say that answer so, (K, C)."""
    probs = np.full((len(answers), CLASSES), 0.1, np.float32)
    probs[np.arange(len(answers)), answers] = 0.8
    return np.log(probs)


CLASS = st.integers(0, CLASSES - 1)


@given(
    rows=st.lists(st.tuples(st.tuples(CLASS, CLASS, CLASS), st.integers(0, 2)), max_size=40),
    most_rows=st.integers(1, 12),
    most_bytes=st.integers(1, 400),
)
def test_the_counts_are_those_of_the_rows_kept(
    rows: list[tuple[tuple[int, int, int], int]], most_rows: int, most_bytes: int
) -> None:
    log = AuditLog(3, most_rows, most_bytes)
    for key, (answers, exit) in enumerate(rows):
        log.add(key, exit, 0.5, log_probs_of(answers))
    fitting = max(min(most_rows, most_bytes // (3 * CLASSES * 2)), 1)
    kept = rows[-fitting:]
    assert [row.request_key for row in log.rows] == list(range(len(rows) - len(kept), len(rows)))
    for exit in range(3):
        alike = [answers[exit] == answers[2] for answers, left in kept if left == exit]
        assert log.at(exit) == (len(alike), sum(alike))
        assert log.at(exit).ratio == (pytest.approx(np.mean(alike)) if alike else None)
    early = [answers[left] == answers[2] for answers, left in kept if left < 2]
    assert log.early == (len(early), sum(early))


def test_a_row_is_kept_at_half_precision_with_all_that_it_left_under() -> None:
    log = AuditLog(2)
    said = np.log(np.array([[0.7, 0.3], [0.2, 0.8]], np.float32))
    log.add(2**64 - 1, 0, -0.25, said)
    (row,) = log.rows
    assert (row.request_key, row.exit, row.parameter) == (2**64 - 1, 0, -0.25)
    assert row.log_probs.dtype == np.float16
    assert row.log_probs == pytest.approx(said, abs=1e-3)


def test_answers_that_tie_at_half_precision_are_compared_before() -> None:
    said = np.log(np.array([[0.40004, 0.40006, 0.1999], [0.1, 0.8, 0.1]], np.float32))
    assert np.float16(said[0, 0]) == np.float16(said[0, 1])
    log = AuditLog(2)
    log.add(0, 0, 0.5, said)
    assert log.early.ratio == 1


def test_of_a_segmentation_the_answer_is_the_class_of_the_largest_share() -> None:
    pixels = np.array([[0.9, 0.1], [0.4, 0.6], [0.45, 0.55]])  # two of three pixels are class 1
    said = np.log(np.stack([pixels, [[0.6, 0.4]] * 3]).astype(np.float32))  # (2, 3, 2)
    log = AuditLog(2)
    log.add(0, 0, 0.5, said)
    assert log.early.ratio == 1, "class 0 has the larger share at both"
    assert log.rows[0].log_probs.shape == (2, 3, 2)


def test_another_policy_begins_with_nothing() -> None:
    log = AuditLog(3)
    log.add(0, 1, 0.5, log_probs_of((0, 0, 1)))
    log.clear()
    assert not log.rows and log.early == (0, 0) and log.early.ratio is None
