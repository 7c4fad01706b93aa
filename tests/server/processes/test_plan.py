from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cores import Cores
from server.processes.plan import (
    ProcessPlan,
    engines_for,
    fill_cores,
    make_plan,
    workers_per_engine,
)
from server.settings import Settings

CORES = st.integers(1, 256)


def plan(cores: int, *devices: str, **settings: Any) -> ProcessPlan:
    usable = Cores(cores, f"{cores} cores: all of this host")
    return make_plan(Settings(**settings), usable, devices or ("cpu",))


@pytest.mark.parametrize(("cores", "front_ends"), [(1, 1), (2, 1), (7, 1), (8, 2), (64, 16)])
def test_on_a_cpu_one_core_in_four_is_a_front_end(cores: int, front_ends: int) -> None:
    made = plan(cores)
    assert (made.front_ends, made.engines, made.engine_workers) == (front_ends, None, None)


@pytest.mark.parametrize(("cores", "front_ends"), [(1, 1), (2, 1), (3, 1), (8, 4), (64, 8)])
def test_before_a_gpu_one_core_in_two_is_a_front_end_up_to_eight(
    cores: int, front_ends: int
) -> None:
    made = plan(cores, "cuda:0")
    assert (made.front_ends, made.engines, made.engine_workers) == (front_ends, 1, 1)


def test_each_device_has_an_engine_and_the_reason_names_them() -> None:
    made = plan(8, "cuda:0", "cuda:1", device="cuda,cuda:1")
    assert (made.engines, made.engine_workers, made.devices) == (2, 1, ("cuda:0", "cuda:1"))
    assert made.reason == "8 cores: all of this host; cuda:0, cuda:1"
    assert plan(8, "cuda:0", "cuda:1", device="cuda:0,cuda:1", engines=2).engines == 2


def test_the_replay_backend_is_one_device_unless_more_engines_are_asked_for() -> None:
    assert plan(8, "replay", backend="replay").engines == 1
    assert plan(8, "replay", backend="replay", engines=4).engines == 4


@pytest.mark.parametrize(
    ("settings", "engines", "workers"),
    [
        ({"engines": 2}, 2, 4),
        ({"engines": 3}, 3, 2),
        ({"engine_workers": 3}, 3, 3),
        ({"engine_workers": 20}, 1, 20),
        ({"engines": 2, "engine_workers": 1}, 2, 1),
        ({"engines": 2, "threads_per_run": 2}, 2, 2),
        ({"engines": 8, "threads_per_run": 8}, 8, 1),
        ({"engine_workers": 1, "threads_per_run": 4}, 2, 1),
        ({"front_ends": 0}, 1, 8),
        ({"front_ends": 0, "threads_per_run": 4}, 1, 2),
        ({"front_ends": 0, "engine_workers": 3}, 1, 3),
    ],
)
def test_settings_decide_before_any_measurement(
    settings: dict[str, int], engines: int, workers: int
) -> None:
    made = plan(8, **settings)
    assert (made.engines, made.engine_workers) == (engines, workers)
    assert made.front_ends == settings.get("front_ends", 2)
    assert fill_cores(made, 5) == made


@pytest.mark.parametrize(
    ("cores", "workers", "engines", "threads"),
    [(8, 1, 8, 1), (8, 2, 4, 2), (8, 8, 1, 8), (7, 4, 2, 3), (31, 16, 2, 15), (2, 1, 2, 1)],
)
def test_a_measurement_decides_the_rest(
    cores: int, workers: int, engines: int, threads: int
) -> None:
    filled = fill_cores(plan(cores), workers)
    assert (filled.engines, filled.engine_workers) == (engines, threads)


@given(CORES, CORES)
def test_engines_leave_fewer_cores_idle_than_they_are(cores: int, workers: int) -> None:
    made = fill_cores(plan(cores), min(workers, cores))
    assert made.engines is not None and made.engine_workers is not None
    assert 1 <= made.engine_workers <= workers
    assert cores - made.engines < made.engines * made.engine_workers <= cores
    assert made.engines == engines_for(cores, min(workers, cores))


@given(st.floats(0, 1e4), st.floats(0, 10), CORES)
def test_an_engine_has_between_one_worker_and_one_per_core(
    stage_ms: float, python_ms: float, cores: int
) -> None:
    assert 1 <= workers_per_engine(stage_ms, python_ms, cores) <= cores


@pytest.mark.parametrize(
    ("stage_ms", "python_ms", "workers"), [(0.3, 0.07, 1), (2, 0.1, 5), (10, 0.07, 32), (1, 0, 32)]
)
def test_long_stages_share_an_interpreter(stage_ms: float, python_ms: float, workers: int) -> None:
    assert workers_per_engine(stage_ms, python_ms, 32) == workers


@pytest.mark.parametrize(
    ("cores", "devices", "settings", "message"),
    [
        (2, ["cpu"], {"engines": 3}, "--engines 3 asks for 3 .* 2 cores: .* at most 2"),
        (2, ["replay"], {"engines": 3, "backend": "replay"}, "--engines 3 asks for 3"),
        (
            1,
            ["cuda:0", "cuda:1"],
            {"device": "cuda:0,cuda:1"},
            "--device cuda:0,cuda:1 asks for 2 engines",
        ),
        (
            8,
            ["cuda:0", "cuda:1"],
            {"device": "cuda:0,cuda:1", "engines": 3},
            "--engines 3 does not fit --device cuda:0,cuda:1, which gets 2",
        ),
        (8, ["cuda:0"], {"engines": 2}, "--engines 2 does not fit --device auto"),
        (8, ["cpu"], {"engines": 1, "front_ends": 0}, "contradicts --front-ends 0"),
        (
            8,
            ["cuda:0", "cuda:1"],
            {"device": "cuda:0,cuda:1", "front_ends": 0},
            "name one device, or leave out --front-ends",
        ),
        (2, ["cpu"], {"threads_per_run": 3}, "--threads-per-run 3 is more .* at most 2"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    cores: int, devices: list[str], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        plan(cores, *devices, **settings)
    assert "\n" not in str(raised.value)
