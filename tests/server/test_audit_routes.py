"""GET /audit and /audit/rows beside a network that is asked by hand."""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from starlette.testclient import TestClient

from models.bundle import load_bundle
from models.runtime.onnx_backend import OnnxBackend
from server.app import create_app
from server.lifespan import SingleProcess
from server.model import ModelControl
from server.quality.auditor import MOST_IN_FLIGHT
from server.quality.feedback import key_of
from server.runner import ModelRunner
from server.schemas import Options
from server.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Images

JPEG = {"content-type": "image/jpeg"}
COUNT = 60


class Client(NamedTuple):
    """A server of one model that is asked by one client."""

    http: TestClient
    service: SingleProcess

    @property
    def model(self) -> ModelControl:
        (model,) = self.service.control.models.values()
        return model

    @property
    def runner(self) -> ModelRunner:
        (runner,) = self.service.runners.values()
        return runner

    def settled(self) -> None:
        """Wait until no audit is on its way."""
        patience = time.monotonic() + 30
        while self.http.portal.call(self._in_flight) and time.monotonic() < patience:
            time.sleep(0.001)

    def _in_flight(self) -> int:
        self.service.book(self.model)
        return self.runner.auditor.in_flight

    def ask(self, file: bytes, headers: dict[str, str] | None = None, **wish: Any) -> dict:
        answer = self.http.post(
            "/predict", content=file, headers=JPEG | (headers or {}), params=wish
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def audit(self) -> dict[str, Any]:
        self.settled()
        (shown,) = self.http.get("/audit").json()["models"]
        return shown

    def rows(self) -> dict[str, np.ndarray]:
        self.settled()
        answer = self.http.get("/audit/rows")
        assert answer.headers["content-type"] == "application/octet-stream"
        with np.load(io.BytesIO(answer.content), allow_pickle=False) as arrays:
            return dict(arrays)

    def metric(self, name: str, **labels: str) -> float:
        registry = self.http.app.state.metrics.registry  # type: ignore[attr-defined]
        return registry.get_sample_value(name, {"model": self.model.name, **labels})


def serving(folder: Path, **settings: Any) -> Iterator[Client]:
    given = {"precision": "float32", "audit_share": 1.0, "max_disagreement": 0, **settings}
    app = create_app(Settings(bundle=(folder,), **given))
    with TestClient(app) as client:
        yield Client(client, app.state.service)


@pytest.fixture
def auditing(shipped_bundle: Path) -> Iterator[Client]:
    yield from serving(shipped_bundle)


def by_hand(bundle: Path, files: list[bytes]) -> np.ndarray:
    """What the network's exits say, (K, N, C)."""
    loaded = load_bundle(bundle)
    variant = loaded.variant("float32")
    backend = OnnxBackend(variant.stage_files, variant.head_files)
    preprocess = loaded.preprocessor(10**6)
    said = []
    for file in files:
        state, exits = preprocess(file).state, []  # type: ignore[arg-type]
        for stage in range(backend.num_exits):
            state = backend.run_stage(stage, state)
            exits.append(backend.run_head(stage, state).log_probs[0])
        said.append(np.stack(exits))
    return np.stack(said, 1)


def test_the_shape_is_that_of_the_contract_before_any_sample(auditing: Client) -> None:
    shown = auditing.audit()
    nothing = {"agreement": None, "agreement_ci95": None}
    unknown = {"score_drift": None, "feedback_accuracy": None, "feedback_accuracy_ci95": None}
    exits = shown.pop("exits")
    assert shown == {
        "model": "cifar10-resnet56", "policy": "stopping", "share": 1.0, "samples": 0,
        "skipped": 0, "lost": 0, **nothing,
    }  # fmt: skip
    assert [each["exit"] for each in exits] == [0, 1, 2]
    for each in exits:
        assert {**each, **nothing, **unknown} == each and each["samples"] == 0
        assert not each["feedback_samples"]
    rows = auditing.rows()
    assert {name: array.shape for name, array in rows.items()} == {
        "log_probs": (3, 0, 10), "exits": (0,), "parameters": (0,), "labels": (0,), "precision": ()
    }  # fmt: skip
    assert rows["precision"] == "float32"


def test_the_numbers_are_those_worked_out_by_hand_from_what_the_network_says(
    auditing: Client, shipped_bundle: Path, images: Images
) -> None:
    files = images.files[:COUNT]
    (shown,) = auditing.http.get("/budget").json()["models"]
    middle_ms = shown["floor_ms"] + 0.4 * (shown["ceiling_ms"] - shown["floor_ms"])
    auditing.http.put("/budget", json={"budget_ms": middle_ms})  # so that all exits are taken
    exits = []
    for file in files:
        exits.append(auditing.ask(file)["exit"])
        auditing.settled()
    said = by_hand(shipped_bundle, files)
    # An exit answers from all heads so far, so which class wins is not its own head's alone.
    pools = auditing.model.scheduler.combiner.weights
    answers = np.stack(
        [np.tensordot(pool, said[: k + 1], 1).argmax(-1) for k, pool in enumerate(pools)]
    )
    alike = answers[exits, range(COUNT)] == answers[-1]

    shown, left = auditing.audit(), np.array(exits)
    assert (shown["samples"], shown["skipped"]) == (COUNT, 0)
    assert {0, 2} <= set(exits) and not alike[left < 2].all(), "there is something to tell"
    assert shown["agreement"] == pytest.approx(alike[left < 2].mean())
    low, high = shown["agreement_ci95"]
    assert 0 <= low < shown["agreement"] < high <= 1
    for each in shown["exits"]:
        there = left == each["exit"]
        assert each["samples"] == there.sum()
        if each["exit"] == 2 or not there.any():
            assert each["agreement"] is None and each["agreement_ci95"] is None
        else:
            assert each["agreement"] == pytest.approx(alike[there].mean())

    rows = auditing.rows()
    assert rows["log_probs"].dtype == np.float16
    assert rows["log_probs"] == pytest.approx(said, abs=0.02, rel=1e-3)
    assert rows["exits"].tolist() == exits and rows["exits"].dtype == np.int8
    assert rows["labels"].tolist() == [-1] * COUNT and rows["labels"].dtype == np.int32
    assert np.isfinite(rows["parameters"]).all() and rows["parameters"].dtype == np.float64

    auditing.http.get("/metrics")
    for exit in range(3):
        counted = auditing.metric("eenet_audit_samples_total", exit=str(exit))
        assert counted == (left == exit).sum()
        ratio = auditing.metric("eenet_audit_agreement_ratio", exit=str(exit))
        if exit == 2:
            assert ratio is None
        elif (left == exit).any():
            assert ratio == pytest.approx(alike[left == exit].mean())
        else:
            assert math.isnan(ratio)


def test_audits_count_in_nobodys_window_or_latency(auditing: Client, images: Images) -> None:
    answers = [auditing.ask(file) for file in images.files[:COUNT]]
    assert auditing.audit()["samples"] + auditing.audit()["skipped"] == COUNT
    assert auditing.audit()["samples"] > 0
    for measure, part in (("compute", "compute"), ("end_to_end", "total")):
        answer = auditing.http.put("/budget", json={"measure": measure}).json()["models"][0]
        assert answer["samples"] == COUNT
        mean = np.mean([each["latency_ms"][part] for each in answers])
        assert answer["rolling_latency_ms"] == pytest.approx(mean, abs=1e-3)
        exits = [each["exit"] for each in answers]
        assert answer["exit_rates"] == pytest.approx([exits.count(k) / COUNT for k in range(3)])
    auditing.http.get("/metrics")
    for name in ("request", "compute", "queue", "decode"):
        assert auditing.metric(f"eenet_{name}_latency_seconds_count") == COUNT
    for stage in range(3):
        reached = sum(exit >= stage for exit in exits)
        label = {"stage": str(stage)}
        assert auditing.metric("eenet_stage_latency_seconds_count", **label) == reached
        assert auditing.metric("eenet_batch_size_count", **label) == reached
        counted = auditing.metric("eenet_predictions_total", exit=str(stage))
        assert counted == exits.count(stage)


def test_without_a_budget_rows_that_ran_to_the_end_show_all_exits_too(
    auditing: Client, shipped_bundle: Path, images: Images
) -> None:
    auditing.http.put("/budget", json={"budget_ms": None, "max_disagreement": 0})
    for file in images.files[:10]:
        assert auditing.ask(file)["exit"] == 2
        auditing.settled()
    shown = auditing.audit()
    assert (shown["samples"], shown["agreement"]) == (10, None)
    rows = auditing.rows()
    said = by_hand(shipped_bundle, images.files[:10])
    assert rows["log_probs"] == pytest.approx(said, abs=0.02, rel=1e-3)
    assert set(rows["exits"].tolist()) == {2}


def test_no_sample_with_a_deadline_is_chosen_but_one_with_its_own_budget_is(
    auditing: Client, images: Images
) -> None:
    auditing.ask(images.files[0], deadline_ms=10_000)
    assert auditing.audit()["samples"] == auditing.audit()["skipped"] == 0
    auditing.ask(images.files[0], budget_ms=1e-3)
    assert auditing.audit()["exits"][0]["samples"] == 1
    own = auditing.rows()["parameters"][0]
    assert own != auditing.runner.engine.parameter


def test_a_busy_engine_audits_every_sample_all_the_same(auditing: Client, images: Images) -> None:
    auditing.runner.engine.idle = lambda: False  # type: ignore[method-assign]
    for file in images.files[:5]:
        auditing.ask(file)
    assert (auditing.audit()["samples"], auditing.audit()["skipped"]) == (5, 0)


def test_rows_are_kept_under_the_ids_that_answers_carry(auditing: Client, images: Images) -> None:
    import base64

    auditing.ask(images.files[0], {"x-request-id": "one"})
    texts = [base64.b64encode(file).decode() for file in images.files[:3]]
    answer = auditing.http.post(
        "/predict", json={"images": texts}, headers={"x-request-id": "many"}
    )
    auditing.settled()
    ids = ["one", *(each["request_id"] for each in answer.json()["predictions"])]
    assert ids == ["one", "many/0", "many/1", "many/2"]
    kept = {row.request_key for row in auditing.model.audits.log.rows}
    assert kept <= {key_of(id) for id in ids} and key_of("one") in kept
    assert len(kept) + auditing.audit()["skipped"] == 4


def test_what_cannot_be_decoded_gives_its_place_back(auditing: Client, images: Images) -> None:
    for _ in range(2 * MOST_IN_FLIGHT):
        for body in (b"no image", b"no image" * 5000):  # on the loop, and on a thread
            answer = auditing.http.post("/predict", content=body, headers=JPEG)
            assert answer.status_code == 422
    assert auditing.runner.auditor.in_flight == 0
    auditing.ask(images.files[0])
    assert auditing.audit()["samples"] == 1


def test_what_fails_gives_its_place_back(auditing: Client, images: Images) -> None:
    run_stage = auditing.runner.engine.backend.run_stage

    def fail(stage: int, state: Any) -> Any:
        raise RuntimeError("device lost")

    auditing.runner.engine.backend.run_stage = fail  # type: ignore[method-assign]
    for file in images.files[:20]:
        assert auditing.http.post("/predict", content=file, headers=JPEG).status_code == 500
    auditing.runner.engine.backend.run_stage = run_stage  # type: ignore[method-assign]
    assert auditing.runner.auditor.in_flight == 0
    assert (auditing.audit()["skipped"], auditing.audit()["lost"]) == (0, 20)
    auditing.http.get("/metrics")
    assert auditing.metric("eenet_audit_lost_total") == 20


def test_clients_that_leave_give_their_places_back(auditing: Client, images: Images) -> None:
    model = auditing.service.front.models[auditing.model.name]

    async def leave() -> list[Any]:
        tasks = [
            asyncio.ensure_future(
                model.dispatcher.infer(
                    file, Options(), auditing.model.clock(), f"{index}", may_block=index % 2 == 0
                )
            )
            for index, file in enumerate(images.files[:40])
        ]
        for task in tasks[::3]:
            await asyncio.sleep(0)
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = auditing.http.portal.call(leave)
    assert any(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    shown = auditing.audit()
    assert auditing.runner.auditor.in_flight == 0
    # Of those that left before they were begun nothing was drawn.
    assert 0 < shown["samples"] + shown["skipped"] <= 40


def test_another_scheduler_begins_its_own_audit(auditing: Client, images: Images) -> None:
    auditing.ask(images.files[0])
    assert auditing.audit()["samples"] == 1
    assert auditing.http.post("/scheduler/reload").status_code == 200
    assert auditing.audit()["samples"] == 0
    auditing.ask(images.files[0])
    assert auditing.audit()["samples"] == 1


def test_the_server_ends_while_audits_are_on_their_way(
    shipped_bundle: Path, images: Images
) -> None:
    for client in serving(shipped_bundle, engine_workers=1):
        for file in images.files[:20]:
            client.ask(file)
        kept = client
    assert not kept.runner.engine.alive
    assert kept.runner.auditor.in_flight == 0
    audits = kept.model.audits
    assert len(audits.log.rows) + audits.skipped + audits.lost == 20


def test_masks_are_audited_pixel_by_pixel(mask_bundle: Path) -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(
        file, "PNG"
    )
    for client in serving(mask_bundle):
        client.ask(file.getvalue(), {"content-type": "image/png"})
        shown, rows = client.audit(), client.rows()
        said = by_hand(mask_bundle, [file.getvalue()])
        assert shown["samples"] == 1
        assert rows["log_probs"].shape == said.shape and said.ndim == 4
        assert rows["log_probs"] == pytest.approx(said, abs=0.02, rel=1e-3)


class Heard:
    """Takes scores as a measure of their drift does."""

    def __init__(self) -> None:
        self.notes: list[tuple[int, list[float], float]] = []

    def add(self, exit: int, scores: np.ndarray, parameter: float) -> None:
        self.notes.append((exit, scores.tolist(), parameter))

    def psi(self) -> list[float | None]:
        return [0.125, None]


def test_scores_that_exits_show_reach_the_measure_of_drift(
    monkeypatch: pytest.MonkeyPatch, auditing: Client, images: Images
) -> None:
    heard = Heard()
    monkeypatch.setattr(auditing.model.quality, "drift", heard)
    parameter = auditing.runner.engine.parameter
    traced = auditing.ask(images.files[0], trace=True)
    auditing.ask(images.files[1], budget_ms=1.0)
    shown = auditing.audit()
    expected = [(e["exit"], [pytest.approx(e["score"])], parameter) for e in traced["trace"]]
    assert [note for note in heard.notes if note[0] < 2] == expected[:2]
    assert [each["score_drift"] for each in shown["exits"]] == [0.125, None, None]


def test_an_unknown_model_or_field_is_refused(auditing: Client) -> None:
    for path in ("/audit", "/audit/rows"):
        assert auditing.http.get(f"{path}?model=nope").status_code == 404
        assert auditing.http.get(f"{path}?modle=nope").status_code == 422
