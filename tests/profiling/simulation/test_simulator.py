import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.stage_costs import StageCosts
from profiling.simulation.arrivals import at_once, poisson
from profiling.simulation.disciplines import DISCIPLINES, Ready, deepest
from profiling.simulation.simulator import MODES, Device, Simulated, Traffic, run_refill, simulate

WAYS = [*((mode, "urgent") for mode in MODES[:2]), *(("refill", name) for name in DISCIPLINES)]
CPU = StageCosts.of_exits([1.0, 3.0, 4.0])
GPU = StageCosts.of_exits([1.0, 3.0, 4.0], free_rows=4)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Traffic, Device]:
    exits = draw(st.lists(st.integers(0, 2), min_size=1, max_size=40))
    gaps_s = draw(
        st.lists(
            st.sampled_from([0.0, 0.0003, 0.001, 0.02]), min_size=len(exits), max_size=len(exits)
        )
    )
    device = Device(
        draw(st.sampled_from([CPU, GPU])), draw(st.integers(1, 3)), draw(st.integers(1, 7))
    )
    return Traffic(np.cumsum(gaps_s), np.array(exits, np.intp)), device


def made(exits: list[int], arrivals_ms: list[float] | None = None) -> Traffic:
    times = [0.0] * len(exits) if arrivals_ms is None else arrivals_ms
    return Traffic(np.array(times) / 1e3, np.array(exits, np.intp))


def answered_ms(traffic: Traffic, result: Simulated) -> list[float]:
    times: list[float] = (result.latency_ms + traffic.arrivals_s * 1e3).round(6).tolist()
    return times


@pytest.mark.parametrize(("mode", "discipline"), WAYS)
@given(cases())
def test_every_sample_runs_the_stages_it_needs_once_and_no_faster_than_alone(
    mode: str, discipline: str, case: tuple[Traffic, Device]
) -> None:
    traffic, device = case
    result = simulate(traffic, device, mode, discipline)
    assert result.rows.tolist() == [int((traffic.exits >= stage).sum()) for stage in range(3)]
    alone_ms = device.costs.costs_ms[traffic.exits]
    assert (result.latency_ms >= alone_ms - 1e-6).all()
    assert 0 < result.utilisation <= 1 + 1e-9
    assert (result.occupancy <= 1).all()
    assert 1 <= result.in_flight <= len(traffic.exits)


@pytest.mark.parametrize(("mode", "discipline"), WAYS)
@given(cases())
def test_one_worker_is_never_idle_while_rows_wait(
    mode: str, discipline: str, case: tuple[Traffic, Device]
) -> None:
    """Where rows cost the same in any batch, the end does not depend on how they are batched."""
    traffic, device = case
    device = Device(CPU, 1, 1 if mode == "run-to-completion" else device.max_batch)
    work_ms = CPU.costs_ms[traffic.exits]
    end_ms = 0.0
    for arrival_s, row_ms in zip(traffic.arrivals_s, work_ms, strict=True):
        end_ms = max(end_ms, arrival_s * 1e3) + row_ms
    result = simulate(traffic, device, mode, discipline)
    assert max(answered_ms(traffic, result)) == pytest.approx(end_ms)
    assert result.busy_ms == pytest.approx(work_ms.sum())


@given(cases())
def test_every_free_worker_takes_a_batch_while_rows_wait(case: tuple[Traffic, Device]) -> None:
    traffic, device = case
    table_ms, ends_ms = device.costs.table_ms(device.max_batch), list[float]()

    def choose(ready: Ready) -> int:
        ends_ms[:] = [end for end in ends_ms if end > ready.now_ms]
        assert len(ends_ms) < device.workers
        stage = deepest(ready)
        ends_ms.append(ready.now_ms + table_ms[stage][min(ready.rows[stage], device.max_batch)])
        waited_ms = ready.now_ms - min(ready.since_ms)
        # Whatever waited did so because all workers were busy until now.
        assert waited_ms == 0 or ready.now_ms in seen_ends
        seen_ends.add(ends_ms[-1])
        return stage

    seen_ends = set[float]()
    run_refill(traffic, device, choose)


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 3), st.integers(0, 9999)
)
def test_run_to_completion_of_single_rows_is_a_queue_before_equal_servers(
    exits: list[int], workers: int, seed: int
) -> None:
    arrivals_s = poisson(400 * workers, len(exits), seed)
    traffic, free_ms, expected = Traffic(arrivals_s, np.array(exits, np.intp)), [0.0] * workers, []
    for arrival_s, exit in zip(arrivals_s, exits, strict=True):
        start = max(free_ms[0], arrival_s * 1e3)
        expected.append(start + CPU.costs_ms[exit])
        free_ms = sorted([expected[-1], *free_ms[1:]])
    for mode in MODES[:2]:
        result = simulate(traffic, Device(CPU, workers, 1), mode)
        assert answered_ms(traffic, result) == pytest.approx(expected)


@pytest.mark.slow
def test_the_queue_with_deterministic_service_waits_as_the_formula_says() -> None:
    load = 0.7
    traffic = Traffic(poisson(1e3 * load, 200_000), np.zeros(200_000, np.intp))
    device = Device(StageCosts.of_exits([1.0]), 1, 1)
    waited_ms = simulate(traffic, device).latency_ms.mean() - 1.0
    assert waited_ms == pytest.approx(load / (2 * (1 - load)), rel=0.05)


def test_a_batch_pays_for_all_its_rows_or_for_those_left_or_refills() -> None:
    traffic = made([0, 2, 0, 2])
    costs = StageCosts.of_exits([1.0, 2.0, 3.0])
    ends = {
        mode: answered_ms(traffic, simulate(traffic, Device(costs, 1, 2), mode)) for mode in MODES
    }
    assert ends["run-to-completion"] == [2, 6, 8, 12]
    assert ends["compaction"] == [2, 4, 6, 8]
    filled = simulate(traffic, Device(costs, 1, 2), "refill", "largest")
    assert answered_ms(traffic, filled) == [2, 8, 4, 8]
    assert filled.batch_rows.tolist() == [2, 2, 2]
    assert filled.occupancy.tolist() == [1, 1, 1]


def test_what_refilling_wins_where_a_batch_costs_what_a_row_does() -> None:
    exits = np.arange(3000, dtype=np.intp) % 3
    traffic, device = Traffic(at_once(3000), exits), Device(GPU, 1, 4)
    rates = [simulate(traffic, device, mode).throughput_per_s for mode in MODES]
    assert rates[0] == rates[1]  # rows that left cost nothing while the others are few
    assert rates[2] > 1.3 * rates[1]
    assert rates[2] == pytest.approx(device.capacity_per_s(exits), rel=0.01)


def test_one_worker_that_goes_deepest_first_never_refills() -> None:
    traffic, device = Traffic(poisson(1500, 4000), np.arange(4000) % 3), Device(GPU, 1, 4)
    first, second = simulate(traffic, device, "compaction"), simulate(traffic, device, "refill")
    never = simulate(traffic, device, "refill", "deepest")
    assert answered_ms(traffic, never) == answered_ms(traffic, first)
    assert second.percentiles_ms[2] < first.percentiles_ms[2]


@pytest.mark.parametrize("discipline", ["urgent", "fullest"])
def test_a_row_of_an_exit_that_hardly_any_reach_does_not_starve(discipline: str) -> None:
    exits = np.where(np.arange(8000) % 1000 == 0, 2, 0).astype(np.intp)
    device = Device(GPU, 1, 4)
    traffic = Traffic(np.arange(8000) / (1.1 * device.capacity_per_s(exits)), exits)
    queued_ms = simulate(traffic, device, "refill", "deepest").latency_ms[exits == 0].max()
    latency_ms = simulate(traffic, device, "refill", discipline).latency_ms[exits == 2]
    assert latency_ms.max() < queued_ms + 100


def test_in_flight_counts_what_is_begun_and_not_answered() -> None:
    traffic = made([2] * 6)
    assert simulate(traffic, Device(CPU, 1, 2), "compaction").in_flight == 2
    assert simulate(traffic, Device(CPU, 3, 2), "compaction").in_flight == 6
    assert simulate(traffic, Device(CPU, 1, 2), "refill", "shallowest").in_flight == 6


def test_a_quiet_system_answers_in_the_time_of_its_stages() -> None:
    traffic = made([0, 1, 2], [0.0, 100.0, 200.0])
    for mode, discipline in WAYS:
        result = simulate(traffic, Device(CPU, 1, 8), mode, discipline)
        assert result.latency_ms.tolist() == pytest.approx([1, 3, 4])
        assert result.percentiles_ms[0] == pytest.approx(3)
        assert result.utilisation == pytest.approx(8 / 204)
        assert result.throughput_per_s == pytest.approx(3 / 0.204)


def test_jitter_makes_batches_longer_and_shorter_in_turn() -> None:
    device = Device(CPU, 1, 1, jitter=(1.0, 3.0))
    for mode in MODES:
        assert answered_ms(made([0, 0, 0]), simulate(made([0, 0, 0]), device, mode)) == [1, 4, 5]


def test_nothing_that_costs_time_takes_none() -> None:
    result = simulate(made([0, 1]), Device(StageCosts.of_exits([0.0, 0.0]), 1, 1))
    assert (result.throughput_per_s, result.utilisation) == (float("inf"), 0.0)


@pytest.mark.slow
def test_a_hundred_thousand_samples_take_seconds() -> None:
    traffic = Traffic(poisson(900, 100_000), np.arange(100_000, dtype=np.intp) % 3)
    started = time.perf_counter()
    simulate(traffic, Device(CPU, 3, 1))
    assert time.perf_counter() - started < 15  # 1.2 s on an idle machine


@pytest.mark.parametrize(
    ("traffic", "sentence"),
    [
        (made([]), "0 arrivals and 0 exits"),
        (Traffic(at_once(2), np.zeros(3, np.intp)), "2 arrivals and 3 exits"),
        (made([0, 3]), "exits run from 0 to 3, the costs have 3 stages"),
        (made([0, -1]), "exits run from -1"),
        (made([0, 0], [1.0, 0.0]), "arrivals do not rise"),
    ],
)
def test_traffic_that_makes_no_sense_is_refused(traffic: Traffic, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        simulate(traffic, Device(CPU))


@pytest.mark.parametrize("bad", [{"workers": 0}, {"max_batch": 0}])
def test_a_device_that_runs_nothing_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="give 1 or more of both"):
        Device(CPU, **bad)
