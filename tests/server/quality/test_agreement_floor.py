"""What the audit, true labels and scores tell of a served model, and the floor kept by them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from starlette.testclient import TestClient

from models.bundle import load_bundle
from models.stage_costs import StageCosts
from profiling.calibration import load_recorded
from scheduler.control.controller import BudgetController, ControllerConfig
from server.app import create_app
from server.loading import CalibratedPolicy, calibrate_to_host, read_schedulers
from server.quality.agreement_floor import AgreementGuard, AgreementTarget, Objective
from server.quality.audit_log import AuditLog
from server.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Images

JPEG = {"content-type": "image/jpeg"}
MODEL = "cifar10-resnet56"
COSTS = [1.0, 2.0, 3.0]


class Scene(NamedTuple):
    """A model's quality without a server: what is audited is up to the test."""

    quality: AgreementGuard
    controller: BudgetController
    log: AuditLog

    def audit(self, log_probs: np.ndarray) -> None:
        """Log rows (K, n, C) and read them, as a beat of the server does."""
        for row in log_probs.swapaxes(0, 1):
            self.log.add(0, 0, 0.0, row.astype(np.float32))
        self.quality.read(self.log)
        self.controller.set_floor(self.quality.minimum_parameter(self.controller))


@pytest.fixture(scope="module")
def host(shipped_bundle: Path) -> CalibratedPolicy:
    variant = load_bundle(shipped_bundle).variant("float32")
    fitted = read_schedulers(variant, None)
    return calibrate_to_host(variant, fitted, StageCosts.of_exits(COSTS)).chosen


@pytest.fixture(scope="module")
def seen(shipped_bundle: Path) -> np.ndarray:
    """Log-probabilities of test samples, shuffled."""
    variant = load_bundle(shipped_bundle).variant("float32")
    log_probs = load_recorded(variant.predictions).test.log_probs
    return log_probs[:, np.random.default_rng(0).permutation(log_probs.shape[1])]


@pytest.fixture
def scene(host: CalibratedPolicy) -> Callable[..., Scene]:
    def make(
        minimum: float | None, prefer: Objective = "agreement", budget_ms: float = 1.3
    ) -> Scene:
        controller = BudgetController(host.frontier, budget_ms, ControllerConfig(window=100))
        return Scene(
            AgreementGuard(host, AgreementTarget(minimum, prefer)), controller, AuditLog(3)
        )

    return make


def test_the_agreement_is_that_of_rows_that_would_leave_early(
    scene: Callable[..., Scene], seen: np.ndarray
) -> None:
    here = scene(None)
    assert here.quality.agreement(here.controller.parameter) is None
    here.audit(seen[:, :600])
    parameter = here.controller.parameter
    shown = here.quality.agreement(parameter)
    assert shown is not None and 0.8 < shown < 1
    never_exit_parameter = here.controller.frontier[-1].parameter
    assert here.quality.agreement(never_exit_parameter) is None  # none would leave early
    assert parameter == here.controller.unconstrained_parameter


def test_rows_are_read_once_however_many_the_log_keeps(
    scene: Callable[..., Scene], seen: np.ndarray
) -> None:
    here = scene(None)
    for start in range(0, 90, 9):
        here.audit(seen[:, start : start + 9])
        here.quality.read(here.log)
    assert here.quality._curve.rows == 90


def test_the_budget_yields_to_the_floor(scene: Callable[..., Scene], seen: np.ndarray) -> None:
    here = scene(0.98)
    here.audit(seen[:, :1000])
    wished, held = here.controller.unconstrained_parameter, here.controller.parameter
    assert here.quality.violated_objective(here.controller) == "budget"
    assert not here.controller.feasible
    before, after = here.quality.agreement(wished), here.quality.agreement(held)
    assert before is not None and before < 0.98
    assert after is not None and after >= 0.98
    frontier = here.controller.frontier
    costlier = frontier.at_parameter(held).expected_cost_ms
    assert costlier > frontier.at_parameter(wished).expected_cost_ms


def test_the_floor_yields_to_the_budget_if_that_is_preferred(
    scene: Callable[..., Scene], seen: np.ndarray
) -> None:
    here = scene(0.98, "budget")
    here.audit(seen[:, :1000])
    assert here.quality.violated_objective(here.controller) == "agreement"
    assert (
        here.controller.parameter == here.controller.unconstrained_parameter
        and here.controller.feasible
    )


def test_the_floor_lets_go_when_inputs_get_easier(
    scene: Callable[..., Scene], seen: np.ndarray
) -> None:
    here = scene(0.98)
    here.audit(seen[:, :1000])
    assert here.quality.violated_objective(here.controller) == "budget"
    answers = seen.argmax(-1)
    alike = seen[:, (answers == answers[-1]).all(0)]
    here.audit(alike[:, :1000])
    assert here.quality.violated_objective(here.controller) is None
    assert here.controller.parameter == here.controller.unconstrained_parameter


def test_a_budget_that_is_kept_anyway_yields_nothing(
    scene: Callable[..., Scene], seen: np.ndarray
) -> None:
    for here in (scene(0.5), scene(None), scene(0.98, budget_ms=100.0)):
        here.audit(seen[:, :1000])
        assert here.quality.violated_objective(here.controller) is None
        assert here.controller.feasible


def served(folder: Path, **settings: Any) -> TestClient:
    given = {"precision": "float32", "window": 100, "audit_share": 1, **settings}
    return TestClient(create_app(Settings(bundle=(folder,), **given)))


def send(client: TestClient, files: list[bytes]) -> list[dict[str, Any]]:
    """Answers, and by the end all of the samples audited that there was slack for."""
    answers = [client.post("/predict", content=file, headers=JPEG).json() for file in files]
    audit_of(client)
    return answers


def audit_of(client: TestClient) -> dict[str, Any]:
    return client.get("/audit").json()["models"][0]


def budget_of(client: TestClient) -> dict[str, Any]:
    client.get("/metrics")  # a beat
    return client.get("/budget").json()["models"][0]


def metrics_of(client: TestClient) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }


@pytest.fixture(scope="module")
def audited(shipped_bundle: Path) -> Iterator[TestClient]:
    with served(shipped_bundle, budget_ms=0.01) as client:
        yield client


@pytest.mark.slow
def test_scores_show_their_drift(audited: TestClient, images: Images) -> None:
    name = f'eenet_score_drift{{exit="0",model="{MODEL}"}}'
    assert math.isnan(metrics_of(audited)[name])
    assert audit_of(audited)["exits"][0]["score_drift"] is None
    send(audited, images.files[:250])
    index = metrics_of(audited)[name]
    assert 0 < index < 0.15  # of 250 scores it is 0.04 by chance alone
    assert audit_of(audited)["exits"][0]["score_drift"] == pytest.approx(index)
    flat = images.files[0]
    send(audited, [flat] * 300)  # one class only, all alike
    assert metrics_of(audited)[name] > 0.25


def test_feedback_shows_in_the_audit_and_goes_with_the_rows(
    audited: TestClient, images: Images
) -> None:
    before = audit_of(audited)["exits"][0]["feedback_samples"]
    assert before == 0 and audit_of(audited)["exits"][0]["feedback_accuracy"] is None
    answers = send(audited, images.files[:30])
    for answer, label in zip(answers, images.labels, strict=False):
        told = {"request_id": answer["request_id"], "label": label}
        assert audited.post("/feedback", json=told).status_code == 200
    right = np.mean([a["class_id"] == y for a, y in zip(answers, images.labels, strict=False)])
    shown = audit_of(audited)["exits"][0]
    assert shown["feedback_samples"] == 30
    assert shown["feedback_accuracy"] == pytest.approx(right)
    low, high = shown["feedback_accuracy_ci95"]
    assert 0 <= low <= right <= high <= 1
    content = audited.get("/audit/rows", params={"model": MODEL}).content
    with np.load(io.BytesIO(content)) as rows:
        labels = rows["labels"]
    given = labels[labels != -1]
    assert 0 < len(given) <= 30 and set(given) <= set(images.labels[:30])


@pytest.mark.slow
@pytest.mark.parametrize("prefer", ["agreement", "budget"])
def test_which_promise_gives_way_is_told(
    shipped_bundle: Path, images: Images, prefer: Objective
) -> None:
    with served(shipped_bundle, min_agreement=1.0, prefer=prefer, budget_ms=1000) as client:
        shown = budget_of(client)
        assert shown["min_agreement"] == 1.0
        assert shown["agreement"] is None and shown["yields"] is None
        client.put("/budget", json={"budget_ms": shown["floor_ms"]})
        for _ in range(4):
            send(client, images.files[:100])
        shown, numbers = budget_of(client), metrics_of(client)
        other = "budget" if prefer == "agreement" else "agreement"
        assert shown["yields"] == other
        for promise in ("agreement", "budget"):
            name = f'eenet_promise_yields{{model="{MODEL}",promise="{promise}"}}'
            assert numbers[name] == (promise == other)
        if prefer == "agreement":
            assert shown["feasible"] is False
            assert "yields to the agreement floor of 1" in shown["reason"]
            assert shown["expected_exit_rates"][0] < 1
            assert shown["agreement"] is None or shown["agreement"] == 1
        else:
            assert "the agreement floor of 1 yields to the budget" in shown["reason"]
            assert shown["expected_exit_rates"][0] > 0.9
            assert shown["agreement"] < 1
