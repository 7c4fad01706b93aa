"""The forecast is the engine's, on a clock of milliseconds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.stage_costs import StageCosts
from profiling.simulation.deadlines import DeadlineForecast
from server.engine.deadlines import Deadlines
from server.engine.request import InferenceRequest

COSTS = StageCosts((1, 4), np.array([[1.0, 2.5], [10.0, 16.0], [10.0, 16.0]]))
GAPS_MS = st.sampled_from([0.0, 1.0, 49.0, 51.0, 900.0, 1001.0, 10_001.0])
STEPS = st.tuples(GAPS_MS, st.integers(0, 2), st.floats(0.1, 2000.0), st.booleans())


@given(st.lists(STEPS, min_size=1, max_size=40), st.integers(1, 4))
def test_the_engine_expects_the_same(
    steps: list[tuple[float, int, float, bool]], max_batch: int
) -> None:
    forecast, engine, now_ms = (
        DeadlineForecast(COSTS, max_batch),
        Deadlines(3, COSTS, max_batch),
        1.0,
    )
    for gap_ms, stage, ms, records in steps:
        now_ms += gap_ms
        if records:
            forecast.record(stage, now_ms, ms)
            engine.stages[stage].times.append((now_ms / 1e3, ms / 1e3))
        elif stage < 2:
            request = InferenceRequest((), deadline_s=(now_ms + ms) / 1e3)
            request.stage = stage
            expected_ms = forecast.stage_ms(stage + 1, now_ms)
            if expected_ms != pytest.approx(ms):
                assert engine.would_miss_next_exit(request, now_ms / 1e3) == (expected_ms > ms)
            else:
                engine.would_miss_next_exit(request, now_ms / 1e3)
