from pathlib import Path

import numpy as np
import pytest

from models.stage_costs import StageCosts
from profiling.simulation.arrivals import bursts
from profiling.simulation.comparison import Result, Subject, compare, read_subject
from profiling.simulation.network import NetworkCosts

WAYS = ["whole network", "exit 0", "exit 1", "frozen thresholds", "SlackFit"]
OURS = ["budget SLO/8", "budget SLO/4", "budget SLO/2"]


@pytest.fixture(scope="module")
def subject(shipped_bundle: Path) -> Subject:
    return read_subject(shipped_bundle, workers=2, max_batch=4)


def compared(subject: Subject, load: float, slo_ms: float) -> dict[str, Result]:
    arrivals_s = bursts(load * subject.full_depth_per_s, 4000, factor=4.0)
    return {each.policy: each for each in compare(subject, subject.offer(arrivals_s), slo_ms)}


def test_the_capacity_is_that_of_the_whole_network_in_full_batches(subject: Subject) -> None:
    costs = subject.network.to_exit(2)
    batch_ms = sum(costs.batch_ms(stage, 4) for stage in range(3))
    assert subject.full_depth_per_s == pytest.approx(2 * 4 / batch_ms * 1e3)
    assert subject.num_exits == 3 and len(subject.correct) == 5000


def test_without_load_all_are_in_time_and_as_right_as_their_exits(subject: Subject) -> None:
    found = compared(subject, 0.1, 50.0)
    assert list(found) == WAYS + OURS
    whole = found["whole network"]
    assert whole.exit_rates == (0, 0, 1) and found["exit 0"].exit_rates == (1, 0, 0)
    for each in found.values():
        assert each.attainment == 1 and each.refused == 0 and each.slo_ms == 50.0
    for name in ("SlackFit", *OURS):
        assert found[name].accuracy == pytest.approx(whole.accuracy, abs=0.01)


def test_under_overload_exits_give_way_before_requests_do(subject: Subject) -> None:
    found = compared(subject, 0.9, 50.0)
    whole = found["whole network"]
    assert whole.refused > 0.1
    assert found["SlackFit"].attainment > whole.attainment
    for name in OURS:
        assert found[name].attainment > whole.attainment + 0.05
        assert found[name].accuracy > whole.accuracy + 0.02
    assert found["budget SLO/2"].accuracy > found["SlackFit"].accuracy + 0.01
    for each in found.values():
        assert each.accuracy <= 1 - each.refused and each.attainment <= 1 - each.refused
        assert sum(each.exit_rates) == pytest.approx(1, abs=1e-3)


def test_requests_are_drawn_with_the_seed(subject: Subject) -> None:
    first, again, other = (subject.offer(np.arange(50.0), seed).rows for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_costs_of_another_network_are_refused(shipped_bundle: Path) -> None:
    costs = NetworkCosts.without_heads(StageCosts.of_exits([1.0, 2.0]))
    with pytest.raises(ValueError, match="has 3 exits, the costs have 2"):
        read_subject(shipped_bundle, network=costs, workers=1, max_batch=1)
