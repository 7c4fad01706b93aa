"""POST /scheduler/reload: another scheduler from the same folder, while requests run."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from models.bundle import load_bundle, rewrite_manifest
from scheduler.fitted import FILES
from server.app import create_app
from server.routes.scheduler import without_folders
from server.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Images

JPEG = {"content-type": "image/jpeg"}
Refitted = Callable[[str], Path]


@pytest.fixture
def folder(shipped_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the shipped bundle, to be changed under the server."""
    return Path(shutil.copytree(shipped_bundle, tmp_path / "bundle"))


@pytest.fixture
def reloading(folder: Path) -> Iterator[TestClient]:
    settings = Settings(bundle=(folder,), precision="float32", window=100, max_disagreement=0)
    with TestClient(create_app(settings)) as client:
        yield client


def scheduler_of(folder: Path) -> Path:
    return load_bundle(folder).variant("float32").scheduler()


def put_scheduler(source: Path, folder: Path) -> str:
    """Another bundle's scheduler into a bundle; the hash of its numbers."""
    with listed_again(folder) as place:
        for name in FILES:
            shutil.copy(scheduler_of(source) / name, place / name)
    return sha256(folder)


@contextmanager
def listed_again(folder: Path) -> Iterator[Path]:
    """Gives the folder of the scheduler, and hashes what has changed in the bundle since."""
    bundle = load_bundle(folder)
    yield bundle.variant("float32").scheduler()
    rewrite_manifest(bundle)


def sha256(folder: Path) -> str:
    return hashlib.sha256((scheduler_of(folder) / FILES[1]).read_bytes()).hexdigest()


def state(client: TestClient) -> dict[str, Any]:
    return client.get("/budget").json()["models"][0]


def reload(client: TestClient, **query: str) -> list[dict[str, Any]]:
    answer = client.post("/scheduler/reload", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["models"]


def test_the_scheduler_that_the_folder_now_holds_is_served(
    reloading: TestClient, folder: Path, refitted: Refitted, images: Images
) -> None:
    assert state(reloading)["policy"] == "stopping"
    reloading.put("/budget", json={"budget_ms": 1e-3})
    wanted = put_scheduler(refitted("maxprob"), folder)
    name = load_bundle(folder).manifest.name
    assert reload(reloading) == [{"model": name, "policy": "maxprob", "sha256": wanted}]
    shown = state(reloading)
    assert shown["policy"] == "maxprob" and shown["thresholds"][:2] == [0, 0]
    assert shown["budget_ms"] == 1e-3
    answer = reloading.post("/predict", content=images.files[0], headers=JPEG)
    assert answer.json()["exit"] == 0
    text = reloading.get("/metrics").text
    assert 'policy="maxprob"' in text and 'policy="stopping"' not in text


def test_reloading_what_is_served_changes_nothing_and_keeps_the_window(
    reloading: TestClient, folder: Path, images: Images
) -> None:
    for file in images.files[:20]:
        reloading.post("/predict", content=file, headers=JPEG)
    before = state(reloading)
    (shown,) = reload(reloading, model=before["model"])
    assert shown["sha256"] == sha256(folder)
    after = state(reloading)
    assert after["samples"] == before["samples"] == 20
    same = ("policy", "budget_ms", "floor_ms", "ceiling_ms", "rolling_latency_ms", "exit_rates")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}


def damage(folder: Path) -> None:
    (scheduler_of(folder) / FILES[1]).write_bytes(b"no archive")


def take_away(folder: Path) -> None:
    (scheduler_of(folder) / FILES[0]).unlink()


def list_rubbish(folder: Path) -> None:
    with listed_again(folder):
        damage(folder)


def change_the_network(folder: Path) -> None:
    heads = load_bundle(folder).variant("float32").head_files
    with listed_again(folder):
        shutil.copy(heads[1], heads[0])


def of_another_network(folder: Path) -> None:
    """A policy of four exits and classes, where the network has three and ten."""
    text = Path(__file__).resolve().parents[2] / "models/zoo/ag-news-minilm"
    put_scheduler(text, folder)


def of_other_classes(folder: Path) -> None:
    """Three exits, but weights for other classes."""
    with listed_again(folder) as place:
        with np.load(place / FILES[1]) as arrays:
            held = dict(arrays)
        for k in range(3):
            held[f"class_offsets_{k}"] = held[f"class_offsets_{k}"][:4]
        np.savez_compressed(place / FILES[1], **held)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (damage, "scheduler.npz is damaged"),
        (take_away, "scheduler.json is missing"),
        (list_rubbish, "scheduler.npz cannot be read"),
        (change_the_network, "no longer holds the float32 network"),
        (of_another_network, "the scheduler has 4 exits, the network 3"),
        (of_other_classes, "failed on the warm-up input"),
    ],
)
def test_a_bad_bundle_is_refused_and_nothing_changes(
    reloading: TestClient,
    folder: Path,
    images: Images,
    spoil: Callable[[Path], None],
    named: str,
) -> None:
    before = state(reloading)
    spoil(folder)
    answer = reloading.post("/scheduler/reload")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_content")
    assert named in answer.json()["detail"]
    assert str(folder.parent) not in answer.text, "where it is concerns the log alone"
    assert state(reloading) == before
    assert reloading.post("/predict", content=images.files[0], headers=JPEG).status_code == 200
    assert reloading.get("/readyz").status_code == 200


@pytest.mark.slow
def test_of_several_models_none_changes_when_one_bundle_is_bad(
    folder: Path, refitted: Refitted, shipped_text_bundle: Path, tmp_path: Path
) -> None:
    text = Path(shutil.copytree(shipped_text_bundle, tmp_path / "text"))
    settings = Settings(bundle=(folder, text), precision="float32", max_disagreement=0)
    with TestClient(create_app(settings)) as client:
        put_scheduler(refitted("maxprob"), folder)
        damage(text)
        assert client.post("/scheduler/reload").status_code == 422
        shown = client.get("/budget").json()["models"]
        assert {each["policy"] for each in shown} == {"stopping"}
        (loaded,) = reload(client, model="cifar10-resnet56")
        assert loaded["policy"] == "maxprob"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/srv/b/float32/x.npz is damaged", "x.npz is damaged"),
        ("/srv/b no longer holds the network", "b no longer holds the network"),
        ("cannot open '/etc/my keys/x' or a/b/c.json: no", "cannot open 'my x' or c.json: no"),
        ("one of a, b; try again", "one of a, b; try again"),
    ],
)
def test_a_sentence_keeps_the_names_of_files_alone(text: str, shown: str) -> None:
    assert without_folders(text, [Path("/srv/b")]) == shown


def test_an_unknown_model_or_field_changes_nothing(reloading: TestClient) -> None:
    assert reloading.post("/scheduler/reload?model=nope").status_code == 404
    assert reloading.post("/scheduler/reload?modle=nope").status_code == 422


@pytest.fixture
def choosing(several_fits: Path) -> Iterator[TestClient]:
    settings = Settings(bundle=(several_fits,), precision="float32", max_disagreement=0)
    with TestClient(create_app(settings)) as client:
        yield client


def test_a_body_chooses_one_of_the_fitted_schedulers(choosing: TestClient) -> None:
    assert state(choosing)["policy"] == "stopping"
    for policy in ("maxprob", "stopping-label-free", "stopping", "maxprob"):
        answer = choosing.post("/scheduler/reload", json={"policy": policy})
        assert answer.json()["models"][0]["policy"] == state(choosing)["policy"] == policy
        assert f'policy="{policy}"' in choosing.get("/metrics").text
    for nothing in (b"", b"{}", b'{"policy": null}'):  # stays with what was named
        assert choosing.post("/scheduler/reload", content=nothing).status_code == 200
        assert state(choosing)["policy"] == "maxprob"


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b'{"policy": "nope"}', 422, "only stopping"),
        (b'{"policy": "nope"}', 422, "maxprob"),
        (b'{"policy": 3}', 422, "policy"),
        (b'{"polcy": "maxprob"}', 422, "polcy"),
        (b"[]", 422, ""),
        (b"{", 400, ""),
    ],
)
def test_a_bad_body_changes_nothing(
    choosing: TestClient, body: bytes, status: int, named: str
) -> None:
    before = state(choosing)
    answer = choosing.post("/scheduler/reload", content=body)
    assert answer.status_code == status and named in answer.json()["detail"]
    assert state(choosing) == before


def test_a_setting_chooses_at_the_start_and_an_unknown_one_is_an_error(several_fits: Path) -> None:
    for policy in ("maxprob", "stopping-label-free"):
        settings = Settings(bundle=(several_fits,), precision="float32", policy=policy)
        with TestClient(create_app(settings)) as client:
            assert state(client)["policy"] == policy
    settings = Settings(bundle=(several_fits,), precision="float32", policy="patience")
    with (
        pytest.raises(ValueError, match="no scheduler 'patience' for float32, only stopping"),
        TestClient(create_app(settings)),
    ):
        pass


@pytest.mark.slow
def test_no_request_fails_while_schedulers_come_and_go(
    reloading: TestClient, folder: Path, refitted: Refitted, shipped_bundle: Path, images: Images
) -> None:
    statuses: Counter[int] = Counter()
    over = threading.Event()
    lock = threading.Lock()
    floor_ms = state(reloading)["floor_ms"]

    def ask(own: bool) -> None:
        index = 0
        while not over.is_set():
            wish = {"budget_ms": 1.3 * floor_ms} if own else {}
            file = images.files[index % len(images.files)]
            answer = reloading.post("/predict", content=file, headers=JPEG, params=wish)
            with lock:
                statuses[answer.status_code] += 1
            index += 1

    threads = [threading.Thread(target=ask, args=(own,)) for own in (False, False, True)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(8):
            source = refitted("maxprob") if turn % 2 == 0 else shipped_bundle
            wanted = put_scheduler(source, folder)
            assert reload(reloading)[0]["sha256"] == wanted
            answered = statuses.total()
            while statuses.total() < answered + 6 and any(map(threading.Thread.is_alive, threads)):
                over.wait(0.001)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200} and statuses[200] >= 48
    text = reloading.get("/metrics").text
    assert 'eenet_requests_total{route="/scheduler/reload",status="200"} 8.0' in text
