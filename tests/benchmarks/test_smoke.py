import json

import pytest

from benchmarks.smoke import problem_of


def report(**fields: object) -> str:
    return "a table\n" + json.dumps(fields) + "\n"


def test_a_smoke_run_that_says_so_is_good() -> None:
    assert problem_of(0, report(smoke=True, figure=1.5), "a warning") is None


@pytest.mark.parametrize(
    ("status", "output", "errors", "problem"),
    [
        (1, report(smoke=True), "ValueError: no such bundle", "status 1: ValueError: no such"),
        (1, "accuracy is too low", "", "status 1: accuracy is too low"),
        (0, "", "", "last line is not JSON: ''"),
        (0, report(smoke=True) + "done\n", "", "last line is not JSON: 'done'"),
        (0, report(smoke=False), "", "does not say that it was a smoke run"),
        (0, report(figure=1), "", "does not say"),
        (0, "[1, 2]", "", "does not say"),
    ],
)
def test_a_run_that_failed_is_one_sentence(
    status: int, output: str, errors: str, problem: str
) -> None:
    assert problem in (problem_of(status, output, errors) or "")
