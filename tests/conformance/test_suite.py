"""The suite itself tells a server that fails from one that holds."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.conformance.checks import Check, Figures, faults_of, outcomes
from tests.conformance.image_checks import with_scans
from tests.conformance.prober import Seen
from tests.conformance.suite import CHECKS
from tests.conformance.target import Target

ROOT = Path(__file__).resolve().parent.parent.parent


def nothing(target: Target) -> Figures:
    """It proves nothing."""
    return Figures(0)


def test_every_check_says_what_it_proves() -> None:
    assert all(check.proves.endswith(".") for check in CHECKS)
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_an_outcome_that_is_not_right_is_a_fall() -> None:
    assert outcomes(Counter({"422": 3})) == Figures(3, note="422 x3")
    with pytest.raises(AssertionError, match=r"answered \{'500': 1\}"):
        outcomes(Counter({"422": 3, "500": 1}))


@pytest.mark.parametrize(
    ("seen", "fault"),
    [
        (Seen(10, 311, 5, {}, 0), "an image took 311 ms"),
        (Seen(10, 5, 400, {}, 0), "a probe took 400 ms"),
        (Seen(10, 5, 5, {"503": 2}, 0), "others were answered {'503': 2}"),
        (Seen(10, 5, 5, {}, 301), "memory grew by 301 MiB"),
    ],
)
def test_what_honest_clients_see_is_judged(seen: Seen, fault: str) -> None:
    assert faults_of(Check(nothing), seen) == [fault]
    assert faults_of(Check(nothing), Seen(10, 310, 310, {}, 300)) == []


def test_a_bomb_of_scans_has_them() -> None:
    assert with_scans(64, 7).count(b"\xff\xda") == 9


TELL_THE_TIME = {"server/routes/classify.py"}  # `created`, as vLLM shows it


def test_a_clock_that_jumps_moves_nothing() -> None:
    """Only what people read knows the time of day; all else counts by a clock that never jumps."""
    found = {
        str(path.relative_to(ROOT))
        for folder in ("server", "scheduler", "models")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("time.time", "time.time_ns", "datetime.now", "time.ctime")
    }
    assert found == TELL_THE_TIME
