from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks.soak.clients import Aside, Checked
from benchmarks.soak.run import Phase, faults_of, texts_of_all_lengths
from benchmarks.soak.watch import Growth, Slope, growth_of, slope_of, total

STEADY = Growth(150.0, 500.0, Slope(0.2, 0.1))


def phase(**changes: object) -> Phase:
    aside = Aside(Checked(answered=100), left=10, refused=10)
    seen = Phase({"200": 1000}, 100.0, [20.0] * 5, aside, STEADY, {"control": 0}, 0.0)
    return seen._replace(**changes)  # type: ignore[arg-type]


def test_a_slope_is_found_in_noise() -> None:
    minutes = np.arange(0, 5, 1 / 60)
    noise = np.random.default_rng(0).normal(0, 2, len(minutes))
    slope, error = slope_of(minutes, 500 + 3 * minutes + noise)
    assert abs(slope - 3) < 3 * error < 1
    assert slope_of(minutes[:2], noise[:2]).error == float("inf")


def test_growth_is_that_of_the_second_half() -> None:
    samples = [(float(n), {"engine-0": 100.0 + n, "control": 0.0}) for n in range(60)]
    samples += [(60.0 + n, {"engine-0": 100.0 + n, "control": 60.0 - n}) for n in range(60)]
    growth = growth_of(samples)
    assert (growth.seconds, growth.mib) == (59, 160) and abs(growth.slope.mib_per_minute) < 1e-9
    assert growth.by_process == {"engine-0": 60, "control": -60}


def test_a_process_that_was_missing_has_no_slope() -> None:
    samples = [
        (float(n), {"control": 1.0} | ({"engine-0": 1.0} if n > 8 else {})) for n in range(9)
    ]
    assert growth_of(samples).by_process == {"control": 0}


def test_a_steady_phase_has_no_fault() -> None:
    assert faults_of(phase(), kills=False, brief=False) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"outcomes": {"200": 9, "reset": 2}}, "2 requests are lost"),
        ({"aside": Aside(Checked(9, lost=1))}, "1 requests are lost"),
        ({"aside": Aside(Checked(9, wrong=1))}, "1 answers are wrong"),
        ({"aside": Aside(Checked())}, "no answer was checked"),
        ({"aside": Aside(Checked(9), accepted=1)}, "1 bad requests were not refused"),
        ({"left": 2.0}, "2 samples are left in queues"),
        ({"more_descriptors": {"control": 4}}, "control has 4 open descriptors more"),
        ({"growth": Growth(150, 500, Slope(3.0, 0.5))}, "memory grows by 3.0 MiB a minute"),
        ({"growth": Growth(30, 500, Slope(30.0, 9.0))}, "memory grows by 30.0 MiB a minute"),
        ({"p99_ms": [20.0, 25, 30, 70, 80]}, "p99 rises from 25 to 70 ms"),
    ],
)
def test_what_misses_the_bar_is_named(changes: dict[str, object], fault: str) -> None:
    assert faults_of(phase(**changes), kills=False, brief=False) == [fault]


def test_what_noise_explains_is_no_growth() -> None:
    noisy = phase(growth=Growth(150, 500, Slope(3.0, 1.5)))
    assert faults_of(noisy, kills=False, brief=False) == []


def test_killed_processes_may_lose_what_they_held() -> None:
    seen = phase(outcomes={"200": 100, "reset": 60, "500": 4})
    assert faults_of(seen, kills=True, brief=False) == []
    seen = phase(outcomes={"200": 100, "reset": 600})
    assert faults_of(seen, kills=True, brief=False) == ["600 requests are lost"]


def test_metrics_are_summed_by_name() -> None:
    values = {'a_total{x="1"}': 2.0, 'a_total{x="2"}': 3.0, "b": 1.0}
    assert total(values, "a_total") == 5 and total(values, "a_total", "b") == 6


def test_texts_have_all_lengths() -> None:
    lengths = [len(call.body.split()) for call in texts_of_all_lengths()]
    assert min(lengths) < 5 and max(lengths) > 240
    same = [a == b for a, b in itertools.pairwise(lengths)]
    assert sum(same) < len(same) / 20
