import pytest

from benchmarks.peers.ours import PRECISION, STEP, served_precision, smallest_budget


def search(needed_ms: float, first_ms: float, trials: int) -> tuple[float, list[float]]:
    tried: list[float] = []

    def is_enough(budget_ms: float) -> bool:
        tried.append(budget_ms)
        return budget_ms >= needed_ms

    return smallest_budget(first_ms, is_enough, trials), tried


@pytest.mark.parametrize("first_ms", [1.0, 1.9, 2.0, 2.1, 3.0])
def test_the_smallest_budget_is_found_from_below_and_from_above(first_ms: float) -> None:
    found, tried = search(2.0, first_ms, trials=30)
    assert 2.0 <= found <= 2.0 * PRECISION
    assert found in tried


@pytest.mark.parametrize(("needed_ms", "first_ms"), [(2.0, 1.9), (2.0, 2.1)])
def test_a_near_first_budget_needs_four_trials(needed_ms: float, first_ms: float) -> None:
    _, tried = search(needed_ms, first_ms, trials=30)
    assert len(tried) <= 4


def test_the_best_that_was_tried_is_set_when_trials_run_out() -> None:
    found, tried = search(2.0, 3.0, trials=3)
    assert tried == pytest.approx([3.0, 3.0 / STEP, 3.0 / STEP**2])
    assert found == tried[-1]
    found, tried = search(2.0, 1.0, trials=3)  # none was enough: the report says so
    assert found == tried[-1] == pytest.approx(1.0 * STEP**2)


METRICS = """# HELP eenet_model_info A loaded model.
eenet_model_info{device="cpu",model="cifar",policy="stopping",%sversion="1"} 1.0
eenet_requests_total{precision="float16"} 3.0
"""


def test_the_precision_is_the_one_that_the_server_has_chosen() -> None:
    assert served_precision(METRICS % 'precision="int8",', ("float32", "int8")) == "int8"
    assert served_precision(METRICS % 'precision="float32",', ("int8", "float32")) == "float32"


def test_metrics_without_a_known_precision_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"names none of float32, int8: .*version"):
        served_precision(METRICS % "", ("float32", "int8"))
