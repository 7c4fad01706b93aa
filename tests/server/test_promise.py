"""The promise about answers, in place of a budget that nobody set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from models.bundle import load_bundle
from models.stage_costs import StageCosts
from scheduler.fitted import Scheduler
from scheduler.policy import exits_taken, replay
from server.app import create_app
from server.metrics import Metrics
from server.model import ModelControl
from server.quality.feedback import PredictionLog
from server.reports import Answers, EntryTerms, RunnerFacts
from server.settings import Settings
from tests.bundles import recorded_of, without_certification

if TYPE_CHECKING:
    from tests.conftest import Images

JPEG = {"content-type": "image/jpeg"}
WHOLE = {"budget_ms": None, "max_disagreement": 0}


def serving(folder: Path, **settings: Any) -> TestClient:
    given = {"precision": "float32", "window": 100, "audit_share": 0, **settings}
    return TestClient(create_app(Settings(bundle=(folder,), **given)))


@pytest.fixture(scope="module")
def client(several_fits: Path) -> Iterator[TestClient]:
    with serving(several_fits) as client:
        yield client


def state(client: TestClient) -> dict[str, Any]:
    shown: dict[str, Any] = client.get("/budget").json()["models"][0]
    return shown


def put(client: TestClient, **change: object) -> dict[str, Any]:
    answer = client.put("/budget", json=change)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()["models"][0]
    return shown


def exits_of(client: TestClient, images: Images, start: int = 0, **options: object) -> list[int]:
    files = images.files[start % len(images.files) :][:40]
    answers = [
        client.post("/predict", content=file, headers=JPEG, params=options) for file in files
    ]
    return [answer.json()["exit"] for answer in answers]


def gauge(client: TestClient, name: str) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith(f"eenet_{name}{{")]
    return {line.partition("{")[2].partition("}")[0]: float(line.split()[-1]) for line in found}


def model_of(client: TestClient) -> ModelControl:
    (model,) = client.app.state.control.models.values()  # type: ignore[attr-defined]
    assert isinstance(model, ModelControl)
    return model


def test_without_a_budget_the_label_free_fit_keeps_the_promise(several_fits: Path) -> None:
    with serving(several_fits) as client:
        shown = state(client)
        rates = gauge(client, "promise")
    certified = shown["certified"]
    assert (shown["promise"], shown["budget_ms"]) == ("disagreement", None)
    assert (shown["policy"], shown["max_disagreement"]) == ("stopping-label-free", 0.01)
    assert certified["bound"] <= certified["epsilon"] == 0.01 and certified["confidence"] == 0.95
    assert certified["rows"] == 2500 and certified["cost_ms"] < shown["ceiling_ms"]
    assert shown["reason"] is None and shown["feasible"] is True
    assert "at most 1 % of the samples" in shown["summary"] and "at 95 %" in shown["summary"]
    assert 0 < shown["expected_exit_rates"][2] < 1
    assert {name.rpartition('promise="')[2][:-1]: rate for name, rate in rates.items()} == {
        "budget": 0, "disagreement": 1, "none": 0,
    }  # fmt: skip


def test_the_certified_point_keeps_its_promise_on_rows_that_nothing_saw(
    client: TestClient, several_fits: Path
) -> None:
    put(client, budget_ms=None, max_disagreement=0.01)
    model, rows = model_of(client), recorded_of(several_fits, "float32").test.log_probs
    exits = exits_taken(model.policy, replay(model.policy, rows), model.controller.parameter)
    answers = rows.argmax(-1)
    assert 0 < np.mean(answers[exits, range(len(exits))] != answers[-1]) <= 0.012


def test_budget_promise_and_whole_network_take_turns(client: TestClient, images: Images) -> None:
    for _ in range(2):
        shown = put(client, budget_ms=1e-3)
        assert (shown["promise"], shown["policy"]) == ("budget", "stopping")
        assert shown["certified"] is None and "exit 0" in shown["reason"]
        assert set(exits_of(client, images)) == {0}
        shown = put(client, budget_ms=None, max_disagreement=0.02)
        assert (shown["promise"], shown["policy"]) == ("disagreement", "stopping-label-free")
        assert shown["certified"]["epsilon"] == shown["max_disagreement"] == 0.02
        assert set(exits_of(client, images)) >= {0, 2}
        shown = put(client, max_disagreement=0)
        assert (shown["promise"], shown["policy"]) == ("none", "stopping")
        assert shown["certified"] is None and "the whole network" in shown["summary"]
        assert set(exits_of(client, images)) == {2}
    metrics = gauge(client, "certified_bound_ratio")
    assert all(math.isnan(bound) for bound in metrics.values()) and metrics


def test_a_smaller_share_costs_more(client: TestClient) -> None:
    shares = (0.05, 0.02, 0.01, 0.005)
    costs = [
        put(client, budget_ms=None, max_disagreement=share)["certified"]["cost_ms"]
        for share in shares
    ]
    assert costs == sorted(costs) and costs[0] < costs[-1]
    assert list(gauge(client, "certified_epsilon_ratio").values()) == [0.005]


def test_a_request_keeps_a_budget_of_its_own_under_every_promise(
    client: TestClient, images: Images
) -> None:
    for change in ({"budget_ms": 2.0}, {"budget_ms": None, "max_disagreement": 0.01}, WHOLE):
        put(client, **change)
        assert set(exits_of(client, images, budget_ms=1e-3)) == {0}
        assert set(exits_of(client, images, budget_ms=1e6)) == {2}


def test_the_expected_accuracy_is_that_by_labels(client: TestClient, several_fits: Path) -> None:
    put(client, budget_ms=None, max_disagreement=0.01)
    log_probs, labels = recorded_of(several_fits, "float32").calibration
    whole = np.mean(log_probs[-1].argmax(-1) == labels)
    assert client.get("/frontier").json()[-1]["expected_accuracy"] == pytest.approx(whole)
    assert state(client)["expected_accuracy"] == pytest.approx(whole, abs=0.01)
    assert list(gauge(client, "expected_accuracy").values()) == pytest.approx([whole], abs=0.01)


@pytest.mark.parametrize(
    "value", ["-0.01", "1", "1.5", '"0.01"', "NaN", "Infinity", "null", "true", "[0.1]"]
)
def test_a_bad_share_is_422_and_changes_nothing(client: TestClient, value: str) -> None:
    before = put(client, budget_ms=2.0, max_disagreement=0.01)
    body = f'{{"budget_ms": null, "max_disagreement": {value}}}'
    answer = client.put("/budget", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and "max_disagreement" in answer.json()["detail"]
    shown = state(client)
    assert (shown["budget_ms"], shown["max_disagreement"]) == (2.0, before["max_disagreement"])


def test_without_certification_rows_everything_runs_to_the_end_and_it_says_why(
    shipped_bundle: Path, tmp_path: Path, images: Images, caplog: pytest.LogCaptureFixture
) -> None:
    folder = without_certification(shipped_bundle, tmp_path / "bundle")
    with serving(folder) as client:
        shown = state(client)
        assert shown["promise"] == "disagreement" and shown["certified"] is None
        assert "0 certification rows" in shown["reason"] and "at least 299" in shown["reason"]
        assert "every sample runs to the last exit" in shown["reason"]
        assert set(exits_of(client, images)) == {2}
    assert "at least 299" in caplog.text


def test_a_budget_at_the_start_is_in_command(several_fits: Path) -> None:
    with serving(several_fits, budget_ms=2.0) as client:
        shown = state(client)
        assert (shown["promise"], shown["policy"]) == ("budget", "stopping")
        assert "mean compute at most 2 ms" in shown["summary"]


def test_audited_samples_withdraw_the_promise_and_renew_it(
    several_fits: Path, images: Images
) -> None:
    with serving(several_fits) as client:
        model, rows = model_of(client), recorded_of(several_fits, "float32").test.log_probs
        rows = rows.astype(np.float32)
        replayed = replay(model.policy, rows)
        exits = exits_taken(model.policy, replayed, model.controller.parameter)
        answers = rows.argmax(-1)
        differs = answers[exits, range(len(exits))] != answers[-1]
        opposed, alike = rows[:, differs], rows[:, (answers == answers[-1]).all(0)]
        model.promise.note_audits(list(opposed[:, :12].swapaxes(0, 1)), 0)
        assert list(gauge(client, "promise_withdrawn").values()) == [1]
        shown = state(client)
        assert shown["certified"] is None and "withdrawn" in shown["reason"]
        assert set(exits_of(client, images)) == {2}
        for start in range(0, 2000, 500):
            model.promise.note_audits(list(alike[:, start : start + 500].swapaxes(0, 1)), 0)
            client.get("/metrics")
        assert list(gauge(client, "promise_withdrawn").values()) == [0]
        shown = state(client)
        assert 2000 <= shown["certified"]["rows"] < 2012  # those since the alarm
        assert shown["reason"] is None and 0 in exits_of(client, images)


def share_shown(client: TestClient) -> float:
    share: float = client.get("/audit").json()["models"][0]["share"]
    return share


@pytest.mark.slow
@pytest.mark.parametrize("by_drift", [True, False])
def test_a_withdrawn_promise_is_renewed_by_some_hundred_requests(
    several_fits: Path, monkeypatch: pytest.MonkeyPatch, images: Images, by_drift: bool
) -> None:
    with serving(several_fits, audit_share=0.01, max_disagreement=0.1) as client:
        model, lost = model_of(client), 0 if by_drift else 10
        assert share_shown(client) == 0.01
        if by_drift:
            monkeypatch.setattr(model.quality.drift, "psi", lambda: [0.3, None])
        else:
            model.note_lost_audits(lost)
        client.get("/metrics")
        shown, sent = state(client), 0
        assert "is audited until these samples certify a point" in shown["reason"]
        assert share_shown(client) == 1
        while shown["certified"] is None and sent < 800:
            exits = exits_of(client, images, start=sent)
            sent += len(exits)
            client.get("/metrics")
            shown = state(client)
            assert shown["certified"] is not None or set(exits) == {2}
        rows = shown["certified"]["rows"]  # since the withdrawal, lost ones included
        assert 40 <= sent <= 800 and sent - 40 < rows <= sent + lost
        assert share_shown(client) == 0.01
        assert 0 in exits_of(client, images)
        audited = client.get("/audit").json()["models"][0]["samples"]
        assert sent - 40 < audited <= sent + 5, "audits are few again"


@pytest.mark.parametrize("audit_share", [0, 0.01])
def test_a_request_with_a_budget_of_its_own_renews_nothing(
    several_fits: Path, images: Images, audit_share: float
) -> None:
    with serving(several_fits, audit_share=audit_share) as client:
        model_of(client).note_lost_audits(20)
        client.get("/metrics")
        exits_of(client, images, budget_ms=1e-3)
        assert client.get("/audit").json()["models"][0]["samples"] <= 4


def test_without_audits_nothing_renews_the_promise_and_it_says_so(
    several_fits: Path, monkeypatch: pytest.MonkeyPatch, images: Images
) -> None:
    with serving(several_fits, audit_share=0) as client:
        monkeypatch.setattr(model_of(client).quality.drift, "psi", lambda: [0.3, None])
        client.get("/metrics")
        assert "with --audit-share 0 none is audited" in state(client)["reason"]
        assert set(exits_of(client, images)) == {2}
        audit = client.get("/audit").json()["models"][0]
        assert (audit["share"], audit["samples"]) == (0, 0)


def test_audits_that_died_with_their_engine_count_against_the_promise(several_fits: Path) -> None:
    with serving(several_fits) as client:
        model_of(client).note_lost_audits(10)
        client.get("/metrics")
        assert "withdrawn" in state(client)["reason"]
        assert client.get("/audit").json()["models"][0]["lost"] == 10


def test_drift_withdraws_the_promise_and_no_reload_brings_it_back(
    several_fits: Path, monkeypatch: pytest.MonkeyPatch, images: Images
) -> None:
    with serving(several_fits) as client:
        monkeypatch.setattr(model_of(client).quality.drift, "psi", lambda: [0.3, None])
        client.get("/metrics")
        assert "drifted" in state(client)["reason"]
        assert set(exits_of(client, images)) == {2}
        assert client.post("/scheduler/reload").status_code == 200
        assert "drifted" in state(client)["reason"]
        assert set(exits_of(client, images)) == {2}


class FakeEngines:
    """Remembers what it was told."""

    fault = stall = None

    def __init__(self) -> None:
        self.parameter = math.nan
        self.scheduler: Scheduler | None = None

    def set_parameter(self, parameter: float, queued: Sequence[float] = ()) -> None:
        self.parameter = parameter

    def set_max_batch(self, rows: int) -> None:
        assert rows >= 1

    async def try_scheduler(self, scheduler: Scheduler) -> None:
        """Every scheduler works."""

    def activate(self, scheduler: Scheduler, policy_version: int, parameter: float) -> None:
        self.scheduler, self.parameter = scheduler, parameter


class Promises(RuleBasedStateMachine):
    """A model's control under any sequence of observations, promises and budgets."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.engines, self.terms = FakeEngines(), list[EntryTerms]()
        bundle = load_bundle(self.folder)
        facts = RunnerFacts("float32", "cpu", StageCosts.of_exits([1.0, 2.0, 3.0]), 1)
        settings = Settings(bundle=(self.folder,), precision="float32", window=50)
        self.model = ModelControl(
            bundle,
            settings,
            Metrics(CollectorRegistry(), "0"),
            PredictionLog(10),
            facts,
            self.engines,
            self.terms.append,
            lambda: self.now_s,
        )
        self.rows = recorded_of(self.folder, "float32").test.log_probs.astype(np.float32)
        self.differs = self.rows[0].argmax(-1) != self.rows[-1].argmax(-1)

    @rule(
        budget_ms=st.one_of(st.none(), st.floats(1e-3, 10)),
        share=st.sampled_from([None, 0.0, 0.001, 0.01, 0.3]),
    )
    def ask(self, budget_ms: float | None, share: float | None) -> None:
        self.model.set_budget(budget_ms=budget_ms, measure="compute", max_disagreement=share)

    @rule(exits=st.lists(st.integers(0, 2), min_size=1, max_size=40), speed=st.floats(0.1, 10))
    def answer(self, exits: list[int], speed: float) -> None:
        self.now_s += 0.1
        column = np.array(exits, np.int64)
        ms = speed * (column + 1.0)
        whole = np.zeros_like(column)
        self.model.note_answers(Answers(whole, column, whole, ms, ms, ms, ms, column >= 0))

    @rule(start=st.integers(0, 4000), count=st.integers(1, 400), opposed=st.booleans())
    def audit(self, start: int, count: int, opposed: bool) -> None:
        rows = self.rows[:, self.differs if opposed else ~self.differs]
        chosen = np.arange(start, start + count) % rows.shape[1]
        self.model.promise.note_audits(list(rows[:, chosen].swapaxes(0, 1)), 0)

    @rule(count=st.integers(1, 3))
    def lose(self, count: int) -> None:
        self.model.note_lost_audits(count)

    @rule()
    def beat(self) -> None:
        self.model.refresh()

    @invariant()
    def the_parameter_is_in_its_range(self) -> None:
        model = self.model
        parameter = self.engines.parameter
        assert parameter in model.scheduler.frontier.parameters
        assert (self.terms[-1].parameters == model.scheduler.frontier.parameters).all()
        if self.engines.scheduler is not None:
            assert self.engines.scheduler is model.scheduler.scheduler
        budget_ms = model.controller.budget_ms
        kept = model.promise.kind(budget_ms) == "disagreement"
        assert self.terms[-1].renews == (kept and model.promise.certified(budget_ms) is None)
        if (
            self.terms[-1].renews
            or model.promise.is_withdrawn(budget_ms)
            or model.promise.kind(budget_ms) == "none"
        ):
            replayed = replay(model.policy, self.rows[:, :50])
            assert set(exits_taken(model.policy, replayed, parameter)) == {2}


def test_nothing_takes_the_parameter_out_of_its_range(several_fits: Path) -> None:
    machine = type("Here", (Promises,), {"folder": several_fits})
    run_state_machine_as_test(
        machine, settings=hypothesis_settings(max_examples=15, stateful_step_count=25)
    )
