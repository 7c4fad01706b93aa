import numpy as np
import pytest

from models.stage_costs import StageCosts
from profiling.simulation.arrivals import poisson
from profiling.simulation.network import NetworkCosts
from profiling.simulation.overload import REFUSED, Offered, Served
from profiling.simulation.simulator import Device
from profiling.simulation.slackfit import Choice, all_choices, fill_buckets, serve_slackfit

# A batch of b rows costs (1 + b) / 2, 1 + b and 3 (1 + b) / 2 ms to the three exits.
NETWORK = NetworkCosts.without_heads(
    StageCosts((1, 2), np.array([[1.0, 1.5], [1.0, 1.5], [1.0, 1.5]]))
)
DEVICE = Device(NETWORK.stages, 1)


def serve(
    arrivals_ms: list[float], choices: list[Choice], deadline_ms: float, drops_late: bool = True
) -> Served:
    offered = Offered(np.array(arrivals_ms), np.zeros(len(arrivals_ms), np.intp))
    return serve_slackfit(offered, DEVICE, NETWORK, choices, deadline_ms, drops_late=drops_late)


def test_an_exit_that_is_no_better_than_one_before_it_is_no_choice() -> None:
    choices = all_choices(NETWORK, np.array([0.8, 0.9, 0.9]), 2)
    assert choices == [(1.0, 0, 1), (1.5, 0, 2), (2.0, 1, 1), (3.0, 1, 2)]


def test_a_bucket_keeps_the_largest_batch_and_then_the_last_exit() -> None:
    choices = all_choices(NETWORK, np.array([0.7, 0.8, 0.9]), 4)
    latencies = [choice.latency_ms for choice in choices]
    assert min(latencies) == 1.0 and max(latencies) == 7.5
    kept = fill_buckets(choices, 2)  # up to 4.25 ms, and beyond
    assert kept == [(2.5, 0, 4), (7.5, 2, 4)]
    finest = fill_buckets(choices, 1000)
    assert [choice.latency_ms for choice in finest] == sorted(set(latencies))
    assert (3.0, 2, 1) not in finest and (3.0, 1, 2) in finest


def test_slack_decides_how_far_and_how_many_go() -> None:
    choices = fill_buckets(all_choices(NETWORK, np.array([0.7, 0.8, 0.9]), 4), 2)
    calm = serve([0.0, 50.0, 100.0], choices, 20.0)
    assert calm.exits.tolist() == [2, 2, 2] and calm.latency_ms.tolist() == [3.0] * 3
    hurried = serve([0.0], choices, 7.0)  # the second bucket takes 7.5 ms
    assert hurried.exits.tolist() == [0] and hurried.latency_ms.tolist() == [1.0]
    # The first is alone. The next four have 9 - 3 = 6 ms left, the last four 9 - 5.5.
    queued = serve([0.0] * 9, choices, 9.0)
    assert queued.exits.tolist() == [2] + [0] * 8
    assert queued.latency_ms.tolist() == [3.0] + [5.5] * 4 + [8.0] * 4


def test_what_no_choice_can_answer_in_time_is_refused_or_delays_the_others() -> None:
    choices = fill_buckets(all_choices(NETWORK, np.array([0.7, 0.8, 0.9]), 1), 3)
    refused = serve([0.0] * 6, choices, 2.5)
    assert refused.exits.tolist() == [1] + [REFUSED] * 5
    late = serve([0.0] * 6, choices, 2.5, drops_late=False)
    assert late.exits.tolist() == [1, 0, 0, 0, 0, 0]
    assert late.attainment(2.5) == refused.attainment(2.5) == pytest.approx(1 / 6)
    none = Choice(5.0, 2, 1)
    assert serve([0.0], [none], 2.0).exits.tolist() == [REFUSED]


def test_under_load_exits_come_earlier_and_batches_grow() -> None:
    choices = fill_buckets(all_choices(NETWORK, np.array([0.7, 0.8, 0.9]), 8), 4)
    means = []
    for rate in (50.0, 600.0, 1500.0):
        arrivals_ms = (poisson(rate, 3000) * 1e3).tolist()
        served = serve(arrivals_ms, choices, 20.0)
        means.append(served.exits[served.exits != REFUSED].mean())
    assert means[0] > 1.9 and means[0] > means[1] > means[2]
