import pytest

from benchmarks.control.scenarios import Phase, Scenario, scenarios
from profiling.loadtest.variants import read_variant


@pytest.mark.parametrize(("texts", "modality"), [(False, "image"), (True, "text")])
def test_every_form_of_inputs_is_one_that_exists(texts: bool, modality: str) -> None:
    found = scenarios(100.0, 4, texts=texts)
    forms = {phase.inputs for each in found for phase in each.phases}
    assert len(forms) > 3
    assert all(read_variant(form, modality) for form in forms)  # type: ignore[arg-type]
    assert len({each.name for each in found}) == len(found)


def test_phases_follow_each_other() -> None:
    both = Scenario("two", (Phase(100, 50.0), Phase(30, 10.0, budget=0.3)))
    assert both.begins_s == [0.0, 2.0]
    assert both.seconds == 5.0


def test_what_the_design_names_is_there() -> None:
    by_name = {each.name: each for each in scenarios(200.0, 10)}
    slow = by_name["slow host"].phases[1]
    assert (slow.slowdown, slow.seconds) == (1.6, 30.0)
    for name in ("burst", "steep burst", "on and off"):
        assert by_name[name].measure == "end_to_end"
    steep_calm, steep, _ = by_name["steep burst"].phases
    assert steep.rate_per_s == 10 * steep_calm.rate_per_s
    assert by_name["neighbours"].phases[0].neighbours
    calm, burst, _ = by_name["burst"].phases
    assert burst.rate_per_s == 4 * calm.rate_per_s
    assert {phase.seconds for phase in by_name["alternating budgets"].phases[1:]} == {5.0}
    assert [phase.budget for phase in by_name["budget steps"].phases] == [0.8, 0.3, 0.8, 0.3]
    assert by_name["1/s"].phases[0].rate_per_s == 1
    assert by_name["1000/s"].phases[0].rate_per_s == 1000


def test_load_that_pulses_has_twice_its_rate_half_of_the_time() -> None:
    pulsing = Phase(1200, 100.0, pulse_s=2.0)
    assert [at_s for at_s, _ in pulsing.rates(5.0)] == [5, 7, 9, 11, 13, 15]
    assert [round(rate) for _, rate in pulsing.rates(5.0)] == [200, 0] * 3
    assert list(Phase(10, 50.0).rates(3.0)) == [(3.0, 50.0)]


def test_neighbours_come_and_go_and_come_at_the_same_times_again() -> None:
    shared = Phase(6000, 100.0, neighbours=True)
    visits = list(shared.visits(1))
    assert visits == list(shared.visits(1)) != list(shared.visits(2))
    times = [time_s for visit in visits for time_s in visit]
    assert times == sorted(times) and times[-1] >= shared.seconds
    assert all(0.5 <= go_s - come_s <= 3.0 for come_s, go_s in visits)
    assert not list(Phase(6000, 100.0).visits(1))


def test_a_shortened_scenario_has_its_phases_with_fewer_samples() -> None:
    both = Scenario("two", (Phase(100, 50.0), Phase(30, 10.0, budget=0.3)))
    short = both.shortened(40)
    assert [phase.samples for phase in short.phases] == [40, 30]
    assert short.phases[1] == both.phases[1] and short.name == "two"
