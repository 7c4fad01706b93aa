import time

import pytest

from server.schemas import BudgetChange, Options, PredictBody
from server.spelling import INPUTS_HINT, did_you_mean, field_hint

KNOWN = ("budget_ms", "deadline_ms", "top_k", "Sci/Tech")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("budgetms", "budget_ms"),
        ("BUDGET_MS", "budget_ms"),
        ("dedline_ms", "deadline_ms"),
        ("sci/teck", "Sci/Tech"),
    ],
)
def test_a_close_name_is_suggested(name: str, meant: str) -> None:
    assert did_you_mean(name, KNOWN) == f"; did you mean {meant!r}?"


def test_the_dashes_of_an_option_do_not_make_it_close() -> None:
    assert did_you_mean("--colour", ("--out", "--epochs")) == ""
    assert did_you_mean("--budgetms", ("--budget-ms",)) == "; did you mean '--budget-ms'?"


@pytest.mark.parametrize("name", ["colour", "", "b"])
def test_nothing_is_suggested_for_other_names(name: str) -> None:
    assert did_you_mean(name, KNOWN) == ""


def test_a_hostile_name_costs_no_time() -> None:
    started = time.perf_counter()
    assert did_you_mean("budget_ms" * 1_000_000, KNOWN) == ""
    assert time.perf_counter() - started < 0.1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("inputs", INPUTS_HINT),
        ("Instances", INPUTS_HINT),
        ("prompt", INPUTS_HINT),
        ("image_url", "; URLs are not fetched, send the file itself in base64 as image"),
        ("url", "; URLs are not fetched, send the file itself in base64 as image"),
        ("uri", "; URLs are not fetched, send the file itself in base64 as image"),
        ("txt", "; did you mean 'text'?"),
        ("topk", "; did you mean 'top_k'?"),
    ],
)
def test_those_who_call_the_input_otherwise_are_told_its_name(name: str, hint: str) -> None:
    assert field_hint(name, PredictBody.model_fields) == hint
    assert field_hint(name, BudgetChange.model_fields) == ""


def test_options_alone_name_no_input() -> None:
    assert field_hint("inputs", Options.model_fields) == ""
