from __future__ import annotations

import asyncio
import itertools
import math
from typing import TYPE_CHECKING

import pytest
from starlette.testclient import TestClient

from models.bundle import LABEL_FREE
from scheduler.policies import POLICIES

if TYPE_CHECKING:
    from tests.conftest import Images

JPEG = {"content-type": "image/jpeg"}
KEYS = {
    "model",
    "policy",
    "budget_ms",
    "measure",
    "effective_budget_ms",
    "parameter",
    "rolling_latency_ms",
    "window",
    "samples",
    "floor_ms",
    "ceiling_ms",
    "feasible",
    "reason",
    "promise",
    "summary",
    "max_disagreement",
    "certified",
    "min_agreement",
    "agreement",
    "yields",
    "expected_accuracy",
    "expected_exit_rates",
    "exit_rates",
    "thresholds",
}


def state(client: TestClient) -> dict:
    return client.get("/budget").json()["models"][0]


def put(client: TestClient, **change: object) -> dict:
    answer = client.put("/budget", json=change)
    assert answer.status_code == 200, answer.text
    return answer.json()["models"][0]


def test_the_state_has_the_shape_of_the_contract(client: TestClient) -> None:
    shown = state(client)
    assert set(shown) == KEYS
    assert shown["model"] == "cifar10-resnet56"
    assert shown["policy"].removesuffix(LABEL_FREE) in POLICIES
    assert (shown["measure"], shown["window"]) == ("compute", 100)
    assert 0 < shown["floor_ms"] < shown["ceiling_ms"]
    assert sum(shown["expected_exit_rates"]) == pytest.approx(1)
    assert len(shown["thresholds"]) == 3 and shown["thresholds"][-1] is None


def test_nothing_seen_yet_is_null(client: TestClient) -> None:
    shown = state(client)
    assert shown["samples"] == 0
    assert shown["rolling_latency_ms"] is None and shown["exit_rates"] is None


def test_a_budget_moves_the_parameter_at_once(client: TestClient) -> None:
    shown = state(client)
    spread = shown["ceiling_ms"] - shown["floor_ms"]
    loose = put(client, budget_ms=shown["floor_ms"] + 0.8 * spread)
    tight = put(client, budget_ms=shown["floor_ms"] + 0.3 * spread)
    assert tight["parameter"] != loose["parameter"]
    assert tight["expected_exit_rates"][0] > loose["expected_exit_rates"][0]
    assert tight["expected_accuracy"] <= loose["expected_accuracy"]
    assert tight["effective_budget_ms"] < tight["budget_ms"]


def test_too_small_a_budget_is_taken_and_said_to_be_infeasible(client: TestClient) -> None:
    shown = put(client, budget_ms=1e-4)
    assert shown["budget_ms"] == 1e-4
    assert shown["feasible"] is False and "exit 0" in shown["reason"]
    assert shown["expected_exit_rates"] == [1, 0, 0]


@pytest.mark.parametrize("tiny", ["1e-300", "5e-324", "9e-7"])
def test_a_budget_below_a_nanosecond_is_422_and_names_the_floor(
    client: TestClient, tiny: str
) -> None:
    answers = [
        client.put("/budget", content=f'{{"budget_ms": {tiny}}}'),
        client.post("/predict", content=b'{"text": "a", "budget_ms": %b}' % tiny.encode(),
                    headers={"content-type": "application/json"}),
    ]  # fmt: skip
    for answer in answers:
        assert answer.status_code == 422 and "0.000001" in answer.json()["detail"]


def test_a_million_is_feasible_and_runs_everything_to_the_end(client: TestClient) -> None:
    shown = put(client, budget_ms=1_000_000)
    assert shown["feasible"] is True and shown["reason"] is None
    assert shown["expected_exit_rates"] == [0, 0, 1]
    assert shown["thresholds"] == [None, None, None]


def test_null_takes_the_budget_off(client: TestClient) -> None:
    shown = put(client, budget_ms=None, max_disagreement=0)
    assert shown["budget_ms"] is None and shown["effective_budget_ms"] is None
    assert shown["expected_exit_rates"] == [0, 0, 1]


def test_a_change_waits_for_no_other_process(client: TestClient) -> None:
    """Engines report when their batch is done, which under load takes longer than a change may."""

    async def never() -> None:
        await asyncio.Event().wait()

    control = client.app.state.control  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "collect", never)
        assert put(client, budget_ms=7.0)["budget_ms"] == 7.0
    put(client, budget_ms=None)


def test_the_measure_changes_alone_and_the_budget_stays(client: TestClient) -> None:
    put(client, budget_ms=2.0, measure="compute")
    shown = put(client, measure="end_to_end")
    assert (shown["measure"], shown["budget_ms"]) == ("end_to_end", 2.0)
    assert put(client, measure="compute")["budget_ms"] == 2.0


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"budget_ms": 0}',
        b'{"budget_ms": -1}',
        b'{"budget_ms": "2"}',
        b'{"budget_ms": NaN}',
        b'{"budget_ms": Infinity}',
        b'{"budget_ms": true}',
        b'{"measure": "wall"}',
        b'{"measure": null}',
        b'{"budget_ms": 1, "budget": 2}',
        b"[1]",
    ],
)
def test_a_bad_change_is_422_and_changes_nothing(client: TestClient, body: bytes) -> None:
    before = put(client, budget_ms=2.0)
    answer = client.put("/budget", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert (state(client)["budget_ms"], state(client)["measure"]) == (2.0, before["measure"])


def test_what_is_not_json_is_400(client: TestClient) -> None:
    answer = client.put("/budget", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_an_unknown_model_is_404_and_changes_nothing(client: TestClient) -> None:
    put(client, budget_ms=2.0)
    assert client.put("/budget?model=nope", json={"budget_ms": 1}).status_code == 404
    assert state(client)["budget_ms"] == 2.0
    assert put(client, budget_ms=2.5)["budget_ms"] == 2.5
    named = client.put("/budget?model=cifar10-resnet56", json={"budget_ms": 2.0})
    assert named.json()["models"][0]["budget_ms"] == 2.0


def test_the_frontier_rises(client: TestClient) -> None:
    points = client.get("/frontier").json()
    assert len(points) >= 24
    assert set(points[0]) == {
        "budget_ms",
        "parameter",
        "expected_accuracy",
        "expected_cost_ms",
        "exit_rates",
    }
    rises = points[-1]["parameter"] > points[0]["parameter"]  # a budget; a price falls
    for earlier, later in itertools.pairwise(points):
        assert later["expected_cost_ms"] > earlier["expected_cost_ms"]
        assert (later["parameter"] > earlier["parameter"]) is rises
    assert points[0]["exit_rates"] == [1, 0, 0] and points[-1]["exit_rates"] == [0, 0, 1]


def test_samples_show_in_the_window_and_their_own_budget_keeps_them_out(
    client: TestClient, images: Images
) -> None:
    put(client, budget_ms=1_000_000)
    before = state(client)["samples"]
    for file in images.files[:5]:
        client.post("/predict", content=file, headers=JPEG)
    client.post("/predict?budget_ms=0.001", content=images.files[0], headers=JPEG)
    shown = state(client)
    assert shown["samples"] == before + 5
    assert shown["exit_rates"][2] == 1


def test_metrics_agree_with_the_budget(client: TestClient, images: Images) -> None:
    put(client, budget_ms=2.0)
    for file in images.files[:20]:
        client.post("/predict", content=file, headers=JPEG)
    shown, text = state(client), client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))

    def metric(name: str, **labels: str) -> float:
        inner = ",".join(
            f'{k}="{v}"' for k, v in sorted({"model": shown["model"], **labels}.items())
        )
        return float(values[f"eenet_{name}{{{inner}}}"])

    assert metric("budget_seconds") == pytest.approx(0.002)
    assert metric("effective_budget_seconds") * 1e3 == pytest.approx(shown["effective_budget_ms"])
    assert metric("rolling_latency_seconds") * 1e3 == pytest.approx(shown["rolling_latency_ms"])
    assert metric("policy_parameter") == pytest.approx(shown["parameter"])
    assert metric("budget_feasible") == shown["feasible"]
    assert metric("expected_accuracy") == pytest.approx(shown["expected_accuracy"])
    for exit in "012":
        assert metric("exit_rate", exit=exit) == pytest.approx(shown["exit_rates"][int(exit)])
    common = shown["thresholds"][0]
    expected = pytest.approx(math.nan if common is None else common, nan_ok=True)
    assert metric("threshold", exit="0") == expected
    answered = sum(metric("predictions_total", exit=exit) for exit in "012")
    assert metric("compute_latency_seconds_count") == answered
    assert metric("stage_latency_seconds_count", stage="0") >= answered
    assert not math.isnan(metric("queue_oldest_seconds"))


def test_openmetrics_is_given_when_asked_for(client: TestClient) -> None:
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    answer = client.get("/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_unknown_paths_make_no_new_labels(client: TestClient) -> None:
    for index in range(5):
        client.get(f"/random/{index}")
    text = client.get("/metrics").text
    assert 'route="other",status="404"' in text and "random" not in text
