"""A served model under policies of both kinds: common thresholds, and one price for all rows."""

from __future__ import annotations

import base64
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from models.bundle import Variant, load_bundle
from scheduler.control.controller import ControllerConfig, Sample
from scheduler.fitted import load_scheduler
from scheduler.policy import score_all
from server.app import create_app
from server.model import ModelControl
from server.pipeline.refit import refit
from server.settings import Settings
from tests.bundles import recorded_of

if TYPE_CHECKING:
    from tests.conftest import Images

JPEG = {"content-type": "image/jpeg"}
Refitted = Callable[[str], Path]


def serving(folder: Path) -> Iterator[TestClient]:
    settings = Settings(bundle=(folder,), precision="float32", window=100, max_disagreement=0)
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="module")
def stopping(refitted: Refitted) -> Iterator[TestClient]:
    yield from serving(refitted("stopping"))


@pytest.fixture(scope="module")
def maxprob(refitted: Refitted) -> Iterator[TestClient]:
    yield from serving(refitted("maxprob"))


@pytest.fixture(params=["stopping", pytest.param("maxprob", marks=pytest.mark.slow)])
def either(request: pytest.FixtureRequest) -> TestClient:
    return request.getfixturevalue(request.param)


def variant_of(folder: Path) -> Variant:
    """What `serving` serves."""
    return load_bundle(folder).variant("float32")


def state(client: TestClient) -> dict[str, Any]:
    return client.get("/budget").json()["models"][0]


def put(client: TestClient, budget_ms: float | None) -> dict[str, Any]:
    answer = client.put("/budget", json={"budget_ms": budget_ms})
    assert answer.status_code == 200, answer.text
    return answer.json()["models"][0]


def put_share(client: TestClient, share: float) -> dict[str, Any]:
    """A budget so far from all-leave-at-once to all-run-to-the-end."""
    shown = state(client)
    return put(client, shown["floor_ms"] + share * (shown["ceiling_ms"] - shown["floor_ms"]))


def ask(client: TestClient, file: bytes, **options: object) -> dict[str, Any]:
    answer = client.post("/predict", params=options, content=file, headers=JPEG)
    assert answer.status_code == 200, answer.text
    return answer.json()


def exits_of(client: TestClient, images: Images, count: int = 60, **options: object) -> list[int]:
    return [ask(client, file, **options)["exit"] for file in images.files[:count]]


def gauges(client: TestClient, name: str) -> list[float]:
    lines = client.get("/metrics").text.splitlines()
    return [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"eenet_{name}{{")]


def test_the_policy_is_named(stopping: TestClient, maxprob: TestClient) -> None:
    for client, policy in ((stopping, "stopping"), (maxprob, "maxprob")):
        assert state(client)["policy"] == policy
        assert f'policy="{policy}"' in client.get("/metrics").text


def test_stopping_shows_its_price_and_no_thresholds(stopping: TestClient) -> None:
    tight, loose = put_share(stopping, 0.2), put_share(stopping, 0.8)
    for shown in (tight, loose):
        assert shown["thresholds"] == [None, None, None]
    assert (
        tight["parameter"] > loose["parameter"]
    )  # a millisecond is more expensive where there are fewer


def test_maxprob_shows_its_thresholds(maxprob: TestClient) -> None:
    tight, loose = put_share(maxprob, 0.2), put_share(maxprob, 0.8)
    for shown in (tight, loose):
        assert 0 < shown["thresholds"][0] <= 1 and shown["thresholds"][2] is None
    assert tight["thresholds"][0] < loose["thresholds"][0]
    assert put(maxprob, 1e-4)["thresholds"][:2] == [0, 0]
    assert put(maxprob, 1e6)["thresholds"] == [None, None, None]


def test_without_a_budget_everything_runs_to_the_end(either: TestClient, images: Images) -> None:
    shown = put(either, None)
    assert shown["budget_ms"] is None and shown["feasible"] is True
    assert exits_of(either, images) == [2] * 60


def test_without_a_budget_the_parameter_is_the_one_that_runs_any_row_to_the_end(
    either: TestClient, refitted: Refitted
) -> None:
    # Not one at which all rows of the calibration set did: others may be surer of themselves.
    shown = put(either, None)
    policy = load_scheduler(variant_of(refitted(shown["policy"])).scheduler()).policy
    assert shown["parameter"] == pytest.approx(policy.never_exit_parameter)


def test_a_tiny_budget_lets_everything_leave_at_once(either: TestClient, images: Images) -> None:
    shown = put(either, 1e-3)
    assert shown["feasible"] is False and "exit 0" in shown["reason"]
    assert shown["expected_exit_rates"] == [1, 0, 0]
    assert exits_of(either, images) == [0] * 60


def test_a_budget_between_parts_the_rows(either: TestClient, images: Images) -> None:
    put_share(either, 0.4)
    assert {0} < set(exits_of(either, images))


def test_rows_keep_a_budget_of_their_own(either: TestClient, images: Images) -> None:
    model = served(either)
    now_s = model.clock()
    model.clock = lambda: now_s  # a rest would let estimates fade, and the ceiling with them
    shown = put_share(either, 0.4)
    assert exits_of(either, images, budget_ms=1e-3) == [0] * 60
    assert exits_of(either, images, budget_ms=1e6) == [2] * 60
    dear, cheap = (
        sum(exits_of(either, images, budget_ms=share * shown["ceiling_ms"])) for share in (0.9, 0.5)
    )
    assert dear > cheap
    assert state(either)["budget_ms"] == shown["budget_ms"]
    model.clock = time.perf_counter


def test_rows_with_a_budget_of_their_own_stay_out_of_the_window_and_move_nothing(
    either: TestClient, images: Images
) -> None:
    put_share(either, 0.4)
    exits_of(either, images)
    time.sleep(ControllerConfig().period_s)
    exits_of(either, images, budget_ms=1e6)  # ends the period that counted the rows before
    model = served(either)
    now_s = model.clock()
    model.clock = lambda: now_s  # a rest would let estimates fade
    windows, control = windows_of(either), control_of(either)
    exits_of(either, images, budget_ms=1e-3)
    exits_of(either, images, budget_ms=1e6)
    many = [base64.b64encode(file).decode() for file in images.files[:60]]
    answer = either.post("/predict", json={"images": many, "budget_ms": 1e6})
    assert {each["exit"] for each in answer.json()["predictions"]} == {2}
    assert control_of(either) == control
    assert windows_of(either) == windows
    exits_of(either, images, count=1)
    assert windows_of(either) != windows
    model.clock = time.perf_counter


def control_of(client: TestClient) -> tuple[float, float]:
    shown = state(client)
    return shown["parameter"], shown["effective_budget_ms"]


def windows_of(client: TestClient) -> list[dict[str, Any]]:
    """What the controllers of both measures know."""
    both = [
        client.put("/budget", json={"measure": measure}).json()["models"][0]
        for measure in ("end_to_end", "compute")
    ]
    names = ("samples", "rolling_latency_ms", "exit_rates")
    return [{name: shown[name] for name in names} for shown in both]


def served(client: TestClient) -> ModelControl:
    """The control of the only model."""
    (model,) = client.app.state.control.models.values()  # type: ignore[attr-defined]
    return model


def test_a_rest_after_an_overload_reaches_engines_and_rows_with_budgets_of_their_own(
    either: TestClient,
) -> None:
    shown = put_share(either, 0.4)
    model = served(either)
    dispatcher = either.app.state.front.models[model.name].dispatcher  # type: ignore[attr-defined]
    engine = either.app.state.service.runners[model].engine  # type: ignore[attr-defined]
    now_s = model.clock()
    model.clock = lambda: now_s
    slow = [Sample(0, 30 * shown["ceiling_ms"])] * 1000
    model.controller.observe(slow, now_s)
    model.refresh()
    model.set_budget(budget_ms=shown["budget_ms"], measure="compute")
    assert state(either)["reason"].endswith("the present cost of exit 0; every sample leaves there")
    overloaded = engine.parameter
    assert dispatcher.terms.slowdown > 10
    now_s += 2.0
    model.refresh()
    assert dispatcher.terms.slowdown == pytest.approx(1, abs=0.1)
    assert engine.parameter != overloaded
    assert state(either)["reason"] is None
    model.clock = time.perf_counter


def test_a_reason_says_present_only_of_what_was_measured_lately(
    either: TestClient, images: Images
) -> None:
    put(either, 1e-3)
    exits_of(either, images, count=5)
    assert "the present cost of exit 0" in state(either)["reason"]
    model = served(either)
    later_s = model.clock() + 60
    model.clock = lambda: later_s
    assert "the cost of exit 0 at the start" in state(either)["reason"]
    model.clock = time.perf_counter


def test_the_engine_heeds_its_queue_where_waiting_counts(either: TestClient) -> None:
    model = served(either)
    active = either.app.state.service.runners[model].engine.active_policy  # type: ignore[attr-defined]
    put_share(either, 0.5)
    assert not active.heeds_queue
    put_measure(either, "end_to_end")
    assert active.heeds_queue
    put_measure(either, "compute")
    assert not active.heeds_queue


def put_measure(client: TestClient, measure: str) -> None:
    assert client.put("/budget", json={"measure": measure}).status_code == 200


def test_rows_of_one_batch_obey_their_own_budget_and_deadline(
    refitted: Refitted, images: Images
) -> None:
    # Lists of several requests meet in batches of up to 16 on one slow worker.
    settings = Settings(
        bundle=(refitted("maxprob"),),
        precision="float32",
        max_batch=16,
        engine_workers=1,
        max_disagreement=0,
    )
    many = [base64.b64encode(file).decode() for file in images.files[:16]]
    with TestClient(create_app(settings)) as client:
        put(client, None)
        wishes = [{}, {"budget_ms": 1e-3}, {"deadline_ms": 60_000}, {"budget_ms": 1e6}] * 2
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(
                lambda wish: client.post("/predict", json={"images": many} | wish), wishes
            )
            exits = [{each["exit"] for each in answer.json()["predictions"]} for answer in answers]
    assert exits == [{2}, {0}, {2}, {2}] * 2


def test_the_trace_shows_what_each_row_met(either: TestClient, images: Images) -> None:
    middle = put_share(either, 0.4)["budget_ms"]
    ran_on = 0
    for file in images.files[:60]:
        answer = ask(either, file, trace=True, budget_ms=middle)
        *passed, left = answer["trace"]
        assert left["exit"] == answer["exit"] == len(passed)
        assert all(entry["score"] < entry["threshold"] for entry in passed)
        if left["exit"] == 2:
            assert left["threshold"] is None
            ran_on += 1
        else:
            assert left["score"] >= left["threshold"]
    assert ran_on > 0


def test_every_row_of_stopping_meets_thresholds_of_its_own(
    stopping: TestClient, maxprob: TestClient, images: Images
) -> None:
    for client, alike in ((stopping, False), (maxprob, True)):
        middle = put_share(client, 0.4)["budget_ms"]
        put(client, None)  # so that nothing moves while we ask
        met = {
            ask(client, file, trace=True, budget_ms=middle)["trace"][0]["threshold"]
            for file in images.files[:20]
        }
        assert (len(met) == 1) is alike
        assert len(met) in (1, 20)


def test_the_trace_without_a_budget_has_continuation_values_but_no_thresholds(
    stopping: TestClient, maxprob: TestClient, images: Images
) -> None:
    for client, nothing_met in ((stopping, [False, False, True]), (maxprob, [True, True, True])):
        put(client, None)
        trace = ask(client, images.files[0], trace=True)["trace"]
        assert [entry["exit"] for entry in trace] == [0, 1, 2]
        assert [entry["threshold"] is None for entry in trace] == nothing_met


def test_served_scores_are_those_of_the_recorded_predictions(
    either: TestClient, refitted: Refitted, images: Images
) -> None:
    folder = refitted(state(either)["policy"])
    recorded = recorded_of(folder, "float32").test.log_probs[:, images.rows[:30]]
    policy, _, combiner = load_scheduler(variant_of(folder).scheduler())
    expected = score_all(policy, combiner.combine_all(recorded))
    for file, scores in zip(images.files[:30], expected, strict=True):
        trace = ask(either, file, trace=True, budget_ms=1e6)["trace"]
        assert [entry["score"] for entry in trace] == pytest.approx(scores, abs=5e-3)


def test_metrics_have_thresholds_where_there_are_any(
    stopping: TestClient, maxprob: TestClient
) -> None:
    shown = put_share(maxprob, 0.4)
    assert gauges(maxprob, "threshold") == pytest.approx(shown["thresholds"][:2])
    shown = put_share(stopping, 0.4)
    assert all(math.isnan(value) for value in gauges(stopping, "threshold"))
    assert gauges(stopping, "policy_parameter") == pytest.approx([shown["parameter"]])


def test_metrics_are_given_before_the_first_sample(refitted: Refitted) -> None:
    for client in serving(refitted("stopping")):
        assert all(math.isnan(rate) for rate in gauges(client, "exit_rate"))
        assert len(gauges(client, "exit_rate")) == 3
        assert state(client)["exit_rates"] is None


def test_the_window_keeps_counting_under_stopping(stopping: TestClient, images: Images) -> None:
    put_share(stopping, 0.4)
    before = state(stopping)["samples"]
    taken = exits_of(stopping, images, count=30)
    after = state(stopping)
    assert after["samples"] == min(before + len(taken), 100)
    assert sum(after["exit_rates"]) == pytest.approx(1)


@pytest.mark.slow
def test_a_host_whose_stages_share_the_time_otherwise_is_told_to_fit_again(
    refitted: Refitted, tmp_path: Path, quick_fits: None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(refitted("stopping"), tmp_path / "bundle"))
    costs_ms = np.array([1.0, 50.0, 51.0])
    refit(folder, policy="stopping", precision="float32", costs_ms=costs_ms)
    with caplog.at_level(logging.WARNING):
        for client in serving(folder):
            assert state(client)["ceiling_ms"] < 50
    assert "differs by more than a fifth" in caplog.text and "eenet fit" in caplog.text
