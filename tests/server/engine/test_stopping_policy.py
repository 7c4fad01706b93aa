import numpy as np
import pytest

from scheduler.fitting.stopping import fit_stopping
from scheduler.policy import exits_taken, replay
from scheduler.stopping import StoppingPolicy
from server.engine.request import InferenceRequest, Prediction
from tests.fakes import FakeBackend
from tests.server.engine.harness import exits_of, opened_late, serve


def test_what_it_would_do_without_the_hole_does_not_matter(stopping: StoppingPolicy) -> None:
    exits = opened_late(
        FakeBackend(), stopping, stopping.never_exit_parameter, stopping.exit_at_first_parameter
    )
    assert exits == [1, 2, 2]


@pytest.fixture(scope="module")
def stopping() -> StoppingPolicy:
    """Fitted to rows whose confidences at the three exits hang together."""
    rng = np.random.default_rng(0)
    confidences = rng.beta([3, 5, 9], 2, (400, 3)).clip(0.01, 0.99)
    log_probs = np.log(np.stack([confidences.T, 1 - confidences.T], -1))
    labels = (rng.uniform(size=400) > confidences[:, 2]).astype(np.int64)
    return fit_stopping(log_probs, labels, np.array([1.0, 2.0, 3.0]))


CONFIDENCES = np.random.default_rng(1).beta([3, 5, 9], 2, (60, 3)).astype(np.float32)


PRICES = (0.3, 0.1, 0.03, 0.0)


@pytest.fixture(scope="module")
def replayed(stopping: StoppingPolicy) -> dict[float, list[int]]:
    """The exits that replaying names for CONFIDENCES, by price; at each exit some leave."""
    columns = CONFIDENCES.T
    log_probs = np.log(np.stack([columns, 1 - columns], -1))
    scored = replay(stopping, log_probs)
    exits = {price: exits_taken(stopping, scored, price).tolist() for price in PRICES}
    assert {exit for taken in exits.values() for exit in taken} == {0, 1, 2}
    return exits


@pytest.mark.parametrize("max_batch", [1, 7, 60])
def test_rows_that_stop_at_a_price_of_their_own_leave_where_replaying_says(
    stopping: StoppingPolicy, replayed: dict[float, list[int]], max_batch: int
) -> None:
    prices = [PRICES[index % 4] for index in range(60)]
    rows = [
        InferenceRequest((each[None],), parameter=price)
        for each, price in zip(CONFIDENCES, prices, strict=True)
    ]
    done = serve(rows, by=stopping, parameter=stopping.never_exit_parameter, max_batch=max_batch)
    assert exits_of(done) == [replayed[price][index] for index, price in enumerate(prices)]


def test_rows_without_a_price_stop_at_the_engines(
    stopping: StoppingPolicy, replayed: dict[float, list[int]]
) -> None:
    rows = [InferenceRequest((each[None],)) for each in CONFIDENCES]
    done = serve(rows, by=stopping, parameter=0.03, max_batch=9)
    assert exits_of(done) == replayed[0.03]


@pytest.mark.parametrize(
    ("at", "exit"), [("exit_at_first_parameter", 0), ("never_exit_parameter", 2)]
)
def test_at_the_extreme_prices_all_rows_leave_together(
    stopping: StoppingPolicy, at: str, exit: int
) -> None:
    rows = [InferenceRequest((each[None],)) for each in CONFIDENCES]
    done = serve(rows, by=stopping, parameter=getattr(stopping, at), max_batch=9)
    assert set(exits_of(done)) == {exit}


def test_the_trace_of_a_stopping_row_has_its_own_continuation_values(
    stopping: StoppingPolicy,
) -> None:
    rows = [InferenceRequest((each[None],), traced=True) for each in CONFIDENCES]
    done = serve(rows, by=stopping, parameter=0.03, max_batch=9)
    at_first = set()
    for index in range(60):
        answer = done[index].result
        assert isinstance(answer, Prediction) and answer.trace is not None
        *passed, left = answer.trace
        assert all(entry.score < entry.threshold for entry in passed)
        assert left.score >= left.threshold
        assert (left.threshold == -np.inf) == (left.exit == 2)
        at_first.add(answer.trace[0].threshold)
    assert len(at_first) > 30
