import json

import numpy as np
import pytest

from benchmarks.growth import FreeBackend, unsure_policy
from benchmarks.harness import SMOKE_NOTE, lower_quartiles, make_parser, print_report, run_engine


@pytest.mark.parametrize("smoke", [True, False])
def test_the_last_line_is_json_and_a_smoke_run_says_so(
    smoke: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    print_report({"rate": 2.5}, smoke=smoke)
    *others, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert report["rate"] == 2.5 and report["smoke"] is smoke and report["cores"] >= 1
    assert others == ([SMOKE_NOTE] if smoke else [])


def test_every_benchmark_takes_smoke_and_is_described_by_its_first_line() -> None:
    parser = make_parser("Cost of a thing.\n\nMore.")
    assert parser.description == "Cost of a thing."
    assert parser.parse_args(["--smoke"]).smoke and not parser.parse_args([]).smoke


def test_requests_run_through_the_engine_in_their_order() -> None:
    states = [(np.zeros((1, 1), np.float32),)] * 5
    run = run_engine(FreeBackend(3, 4), unsure_policy(3, 4), 0.0, states, workers=1, max_batch=2)
    assert run.exits == [2] * 5
    assert run.rate == pytest.approx(5 / run.seconds)


def test_ways_are_timed_in_turns() -> None:
    calls: list[str] = []
    quartiles = lower_quartiles([lambda: calls.append("a"), lambda: calls.append("b")], 3)
    assert calls == ["a", "b"] * 3
    assert quartiles.shape == (2,) and (quartiles >= 0).all()
