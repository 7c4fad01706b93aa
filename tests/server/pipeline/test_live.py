"""`eenet fit --from-live` against a server of a few lines: what it asks, writes and says."""

import hashlib
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import load_bundle
from profiling.calibration import Predictions, Recorded, load_recorded
from scheduler.fitted import FILES, load_scheduler
from server.cli.main import main
from server.pipeline.live import UNLABELLED, LiveRows, LiveServer, labelled
from tests.bundles import add_int8, recorded_of, scheduler_of, variant_of

pytestmark = pytest.mark.usefixtures("quick_fits")

MakeProbs = Callable[..., tuple[NDArray[np.float64], NDArray[np.int64]]]
MakeBundle = Callable[[Recorded], Path]


class Fake:
    """Answers with what it is given, and keeps what it was asked."""

    def __init__(self) -> None:
        self.rows: dict[str, NDArray[Any]] = {}
        self.asked: list[tuple[str, str, dict[str, list[str]]]] = []
        self.bodies: list[Any] = []
        self.keys: set[str | None] = set()
        self.policy = "maxprob"
        self.runs: Callable[[], str] = lambda: "0" * 64
        self.refusal: tuple[int, dict[str, str]] | None = None

    def answer(self, method: str, path: str) -> tuple[int, bytes]:
        parts = urlsplit(path)
        self.asked.append((method, parts.path, parse_qs(parts.query)))
        if self.refusal is not None:
            return self.refusal[0], json.dumps(self.refusal[1]).encode()
        if parts.path == "/audit/rows":
            file = io.BytesIO()
            np.savez(file, allow_pickle=False, **self.rows)  # type: ignore[arg-type]
            return 200, file.getvalue()
        told = {"model": "pets", "policy": self.policy, "sha256": self.runs()}
        return 200, json.dumps({"models": [told]}).encode()


@contextmanager
def serving(fake: Fake) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            if body := self.rfile.read(int(self.headers.get("Content-Length", 0))):
                fake.bodies.append(json.loads(body))
                fake.policy = fake.bodies[-1]["policy"]
            fake.keys.add(self.headers.get("Authorization"))
            status, content = fake.answer(self.command, self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _serve

        def log_message(self, *given: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def predictions(make_probs: MakeProbs, rows: int, seed: int) -> Predictions:
    probs, labels = make_probs(rows, seed=seed)
    return Predictions(np.log(probs).astype(np.float16), labels)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test of this file leaves the bundle that it fitted."""
    return tmp_path_factory.mktemp("fitted") / "bundle"


@pytest.fixture
def bundle(make_bundle: MakeBundle, make_probs: MakeProbs, first: Path) -> Path:
    made = make_bundle(
        Recorded(predictions(make_probs, 200, seed=0), None, predictions(make_probs, 100, seed=1))
    )
    if first.exists():
        shutil.rmtree(made)
        return shutil.copytree(first, made)
    assert main(["fit", str(made), "--policy", "maxprob"]) == 0
    shutil.copytree(made, first)
    return made


@pytest.fixture
def fake(bundle: Path, make_probs: MakeProbs) -> Fake:
    """Has 600 rows, every third with its label, and runs what the bundle's folder holds."""
    fake = Fake()
    log_probs, labels = predictions(make_probs, 600, seed=2)
    known = np.where(np.arange(600) % 3 == 0, labels, UNLABELLED)
    fake.rows = {
        "log_probs": log_probs,
        "exits": np.zeros(600, np.int8),
        "parameters": np.ones(600),
        "labels": known.astype(np.int32),
        "precision": np.array("float32"),
    }
    fake.runs = lambda: hashlib.sha256(
        (variant_of(bundle).scheduler(fake.policy) / FILES[1]).read_bytes()
    ).hexdigest()
    return fake


@pytest.fixture
def url(fake: Fake) -> Iterator[str]:
    with serving(fake) as url:
        yield url


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_live_rows_become_the_calibration_set(bundle: Path, fake: Fake, url: str) -> None:
    before = recorded_of(bundle)
    assert main(["fit", str(bundle), "--from-live", url + "/"]) == 0
    after = recorded_of(bundle)
    load_bundle(bundle)  # every hash is right
    assert np.array_equal(after.calibration.log_probs, fake.rows["log_probs"])
    known = fake.rows["labels"] != UNLABELLED
    assert np.array_equal(after.calibration.labels[known], fake.rows["labels"][known])
    assert np.array_equal(after.test.log_probs, before.test.log_probs)
    assert np.array_equal(after.test.labels, before.test.labels)
    assert scheduler_of(bundle).policy.kind == "maxprob"  # the bundle's own
    asked = {"model": ["pets"]}
    assert fake.asked == [
        ("GET", "/audit/rows", asked),
        ("GET", "/audit", asked),
        ("POST", "/scheduler/reload", asked),
    ]
    assert not fake.bodies, "the server goes on under the policy that it has"
    assert fake.keys == {None}


def test_the_model_there_and_the_policy_may_be_named(bundle: Path, fake: Fake, url: str) -> None:
    named = ["--model", "pets two", "--policy", "entropy"]
    assert main(["fit", str(bundle), "--from-live", url, *named]) == 0
    assert [query for *_, query in fake.asked] == [{"model": ["pets two"]}] * 2
    assert scheduler_of(bundle).policy.kind == "entropy"
    assert fake.bodies == [{"policy": "entropy"}]


def test_what_is_served_is_fitted_whatever_the_bundle_starts_with(
    bundle: Path, fake: Fake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(bundle), "--policy", "stopping"]) == 0
    fake.policy = "maxprob"
    assert main(["fit", str(bundle), "--from-live", url]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{url} now uses it"
    assert scheduler_of(bundle).policy.kind == "maxprob"
    assert "stopping" in variant_of(bundle).entry.schedulers


def test_a_server_that_keeps_a_promise_gets_a_label_free_fit(
    bundle: Path, fake: Fake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(bundle), "--labels", "none", "--policy", "stopping"]) == 0
    fake.policy = "stopping-label-free"
    before = contents(variant_of(bundle).scheduler("maxprob"))
    assert main(["fit", str(bundle), "--from-live", url]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{url} now uses it"
    after = variant_of(bundle)
    assert after.entry.policy == "maxprob" and contents(after.scheduler("maxprob")) == before
    assert load_scheduler(after.scheduler("stopping-label-free")).frontier.reference == "last_exit"
    assert not fake.bodies


def test_a_fit_that_budget_or_promise_does_not_call_for_is_named(
    bundle: Path, fake: Fake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(bundle), "--from-live", url, "--labels", "none"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert "calls for maxprob;" in said and said.endswith("choose maxprob-label-free")


def test_a_policy_that_cannot_be_fitted_is_told(
    bundle: Path, fake: Fake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.policy, fake.runs = "oracle", lambda: "0" * 64
    assert "serves oracle; name a policy" in complaint(bundle, capsys, "--from-live", url)


KEY = "0123456789abcdef"


def test_a_key_goes_along_from_a_file_or_the_environment(
    bundle: Path, fake: Fake, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv("EENET_KEY", "another")
    named = ["--key-file", str(tmp_path / "key")]
    assert main(["fit", str(bundle), "--from-live", url, *named]) == 0
    assert fake.keys == {f"Bearer {KEY}"}
    fake.keys.clear()
    assert main(["fit", str(bundle), "--from-live", url]) == 0
    assert fake.keys == {"Bearer another"}


@pytest.mark.parametrize(("status", "remedy"), [(401, "--key-file FILE"), (403, "the other group")])
def test_a_key_that_does_not_open_says_what_to_do(
    bundle: Path,
    fake: Fake,
    url: str,
    capsys: pytest.CaptureFixture[str],
    status: int,
    remedy: str,
) -> None:
    fake.refusal = (status, {"detail": "no"})
    said = complaint(bundle, capsys, "--from-live", url)
    assert f"answered {status}: no; " in said and remedy in said


def test_a_key_without_a_server_is_told(
    bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "--from-live" in complaint(bundle, capsys, "--key-file", str(tmp_path / "key"))


def test_it_says_what_it_was_fitted_to_and_that_the_server_goes_on(
    bundle: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["fit", str(bundle), "--from-live", url, "--json"]) == 0
    printed = capsys.readouterr()
    shown = printed.err.splitlines()
    assert "600 live rows, 200 with feedback" in "\n".join(shown)
    assert shown[-1] == f"{url} now uses it"
    told = json.loads(printed.out)["live"]
    assert (told["rows"], told["feedback"], told["swapped"]) == (600, 200, True)


def test_a_server_of_another_folder_is_told(
    bundle: Path, fake: Fake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.runs = lambda: "0" * 64
    assert main(["fit", str(bundle), "--from-live", url]) == 0
    assert "from another folder" in capsys.readouterr().out


def complaint(
    bundle: Path, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:  # which leaves the bundle as it was
    before = contents(bundle)
    capsys.readouterr()
    assert main(["fit", str(bundle), *arguments]) == 2
    assert contents(bundle) == before
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("eenet: ")
    return said


def test_too_few_rows_are_told_with_the_remedy(
    bundle: Path, fake: Fake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.rows = {
        name: rows[:, :499] if name == "log_probs" else rows[:499] if rows.ndim else rows
        for name, rows in fake.rows.items()
    }
    said = complaint(bundle, capsys, "--from-live", url)
    assert "499 audited rows" in said and "500" in said and "--audit-share" in said


def test_rows_of_another_network_are_told(
    bundle: Path, fake: Fake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.rows["log_probs"] = fake.rows["log_probs"][:2]
    assert "3 exits and 4 classes" in complaint(bundle, capsys, "--from-live", url)


def test_labels_outside_the_classes_are_told(
    bundle: Path, fake: Fake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.rows["labels"][5] = 4
    assert "outside its 4 classes" in complaint(bundle, capsys, "--from-live", url)


def test_every_precision_is_fitted_where_none_is_named(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_int8(bundle)
    capsys.readouterr()
    assert main(["fit", str(bundle), "--policy", "entropy", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"bundle", "evaluations", "precisions"}
    assert list(told["precisions"]) == ["float32", "int8"]
    assert all(list(fitted) == ["evaluations"] for fitted in told["precisions"].values())
    assert told["evaluations"] == told["precisions"]["float32"]["evaluations"]
    last_budgets = [fitted["evaluations"][-1]["budget"] for fitted in told["precisions"].values()]
    loaded = load_bundle(bundle)
    for precision, last_ms, budget_ms in zip(
        loaded.precisions, (3.3, 1.5), last_budgets, strict=True
    ):
        fitted = load_scheduler(loaded.variant(precision).scheduler())
        assert (fitted.policy.kind, fitted.frontier.costs_ms[-1]) == ("entropy", last_ms)
        assert budget_ms < last_ms


def test_the_precision_that_is_served_is_fitted_and_no_other(
    bundle: Path, fake: Fake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_int8(bundle)
    before = load_bundle(bundle).variant("float32")
    fake.rows["precision"] = np.array("int8")
    served = load_bundle(bundle).variant("int8")
    fake.runs = lambda: hashlib.sha256(
        (served.scheduler("maxprob") / FILES[1]).read_bytes()
    ).hexdigest()
    kept = contents(before.folder)
    capsys.readouterr()
    assert main(["fit", str(bundle), "--from-live", url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["precisions"]) == ["int8"]
    assert told["precisions"]["int8"]["live"] == told["live"]
    assert (told["live"]["rows"], told["live"]["swapped"]) == (600, True)
    after = load_bundle(bundle)
    assert after.variant("float32").entry == before.entry
    assert contents(before.folder) == kept
    recorded = load_recorded(after.variant("int8").predictions)
    assert np.array_equal(recorded.calibration.log_probs, fake.rows["log_probs"])


def test_another_precision_than_the_served_one_is_refused(
    bundle: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_int8(bundle)
    said = complaint(bundle, capsys, "--from-live", url, "--precision", "int8")
    assert f"{url} serves float32, not int8; leave --precision out" in said


def test_a_precision_that_only_the_server_has_is_told(
    bundle: Path, fake: Fake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.rows["precision"] = np.array("int8")
    assert "holds no int8 network, only float32" in complaint(bundle, capsys, "--from-live", url)


@pytest.mark.parametrize("given", [None, "int4"])
def test_rows_of_no_known_precision_are_told(
    bundle: Path, fake: Fake, url: str, capsys: pytest.CaptureFixture[str], given: str | None
) -> None:
    del fake.rows["precision"]
    if given is not None:
        fake.rows["precision"] = np.array(given)
    assert "answers no rows" in complaint(bundle, capsys, "--from-live", url)


def test_costs_are_those_of_one_precision(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_int8(bundle)
    said = complaint(bundle, capsys, "--costs", "1,2,3")
    assert "holds float32, int8; name one with --precision" in said
    assert main(["fit", str(bundle), "--costs", "1,2,3", "--precision", "int8"]) == 0
    costs_ms = [
        load_scheduler(load_bundle(bundle).variant(name).scheduler()).frontier.costs_ms.tolist()
        for name in ("float32", "int8")
    ]
    assert costs_ms == [[1, 2, 3.3], [1, 2, 3]]


def test_what_the_server_refuses_is_told(
    bundle: Path, fake: Fake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.refusal = (404, {"detail": "no model 'pets' is loaded; name one of cats"})
    said = complaint(bundle, capsys, "--from-live", url)
    assert "404" in said and "name one of cats" in said


def test_answers_that_are_no_rows_are_told(
    bundle: Path, fake: Fake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.refusal = (200, {"hello": "world"})
    assert "answers no rows" in complaint(bundle, capsys, "--from-live", url)


@pytest.mark.parametrize("given", ["http://127.0.0.1:1", "http://127.0.0.1:port"])
def test_no_server_is_told(bundle: Path, capsys: pytest.CaptureFixture[str], given: str) -> None:
    assert "check that the server is running" in complaint(bundle, capsys, "--from-live", given)


@pytest.mark.parametrize("given", ["localhost:8000", "file:///etc/passwd", ""])
def test_what_is_no_url_is_told(
    bundle: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    assert "http://localhost:8000" in complaint(bundle, capsys, "--from-live", given)


def test_a_model_without_a_server_is_told(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--from-live" in complaint(bundle, capsys, "--model", "pets")


def test_a_reload_that_fails_says_so(bundle: Path, fake: Fake, url: str) -> None:
    fake.refusal = (422, {"detail": "scheduler.npz is damaged"})
    with pytest.raises(ValueError, match=r"422: scheduler\.npz is damaged"):
        LiveServer(url, "pets").reload(None)


def test_drawn_labels_are_the_last_exits_answer_as_often_as_it_is_right(
    make_probs: MakeProbs,
) -> None:
    calibration = predictions(make_probs, 4000, seed=0)
    live = predictions(make_probs, 4000, seed=5)
    rows = LiveRows(live.log_probs, np.full(4000, UNLABELLED), "float32")
    given = labelled(rows, calibration, seed=0)
    assert given.with_feedback == 0
    agreed = (live.log_probs[-1].argmax(-1) == given.predictions.labels).mean()
    assert agreed == pytest.approx(live.correct[:, -1].mean(), abs=0.02)
    assert agreed < 0.95
    again = labelled(rows, calibration, seed=0)
    assert np.array_equal(given.predictions.labels, again.predictions.labels)
    other = labelled(rows, calibration, seed=1)
    assert not np.array_equal(given.predictions.labels, other.predictions.labels)
